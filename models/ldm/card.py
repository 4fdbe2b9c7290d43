"""The figures' part of the model card: everything between two marks in README.md, written from figures.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

BEGIN = "<!-- figures: written by python -m models.ldm.evaluate -->"
END = "<!-- end of figures -->"
AUTOENCODERS = {
    "gan_": "stage 1, with the discriminator",
    "no_gan_": "stage 1, as many steps, the discriminator off",
    "": "as shipped: then the decoder trained on noisy latents",
}


def write_card(path: Path, figures: Mapping[str, float]) -> None:
    """Replace the part between the marks; the rest of the card is written by hand."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: the marks of the figures' part are gone: put back '{BEGIN}' and '{END}'")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(before + BEGIN + "\n\n" + figures_as_markdown(figures) + "\n" + END + after, encoding="utf-8")


def figures_as_markdown(figures: Mapping[str, float]) -> str:
    """Two tables: what stage 1 keeps of a picture, and what stage 2 draws."""
    rows = "\n".join(
        f"| {name} | {figures[f'{prefix}reconstruction_psnr_db']:.2f} dB "
        f"| {figures[f'{prefix}reconstruction_sharpness']:.3f} |"
        for prefix, name in AUTOENCODERS.items()
        if f"{prefix}reconstruction_psnr_db" in figures
    )
    held_out, samples = figures["classifier_accuracy_held_out"], figures["classifier_accuracy_samples"]
    near = figures["samples_nearer_than_threshold"]
    return f"""\
| Stage 1 on {figures["held_out_pictures"]:.0f} held-out emoji | PSNR | sharpness |
|---|---|---|
{rows}

Sharpness is the mean magnitude of the luminance's 3×3 Laplacian, copies over originals: 1 is as sharp as the original.

| Stage 2, {figures["samples"]:.0f} pictures, 20 steps of DPM-Solver++ 2M, guidance 4 | |
|---|---|
| classifier's accuracy on held-out real emoji | {held_out:.1%} |
| its accuracy on drawn pictures (the class that was asked for) | {samples:.1%} |
| the second over the first | {samples / held_out:.2f} |
| distance to the nearest training picture, median: drawn / held-out real | \
{figures["nearest_distance_samples_median"]:.3f} / {figures["nearest_distance_held_out_median"]:.3f} |
| drawn pictures nearer to a training picture than 95 % of held-out real ones are | {near:.1%} |
| different nearest neighbours among the {figures["samples"]:.0f} | {figures["distinct_neighbours"]:.0f} |

The distance is the root mean square difference of pixels in [−1, 1] at half size, the least over shifts of up to
2 pixels and the mirror image.
"""
