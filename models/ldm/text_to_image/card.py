"""The figures' part of emoji-flux's card: everything between two marks in README.md, written from figures.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from models.ldm.card import END

BEGIN = "<!-- figures: written by python -m models.ldm.text_to_image.evaluate -->"


def write_card(path: Path, figures: Mapping[str, float]) -> None:
    """Replace the part between the marks; the rest of the card is written by hand."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: the marks of the figures' part are gone: put back '{BEGIN}' and '{END}'")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(before + BEGIN + "\n\n" + figures_as_markdown(figures) + "\n" + END + after, encoding="utf-8")


def figures_as_markdown(figures: Mapping[str, float]) -> str:
    """One table: what the judge accepts of the drawings, and of real or recoloured emoji for comparison."""
    names, recombined = f"{figures['names']:.0f}", f"{figures['recombined']:.0f}"
    return f"""\
| One drawing a prompt, 28 Euler steps, guidance 3.5 | drawn | real |
|---|---|---|
| of {names} names of the training set: subgroup right | \
{figures["names_accepted"]:.0f} | {figures["names_accepted_real"]:.0f} |
| the emoji of that name is the nearest of all 1,870, by pixels | {figures["names_nearest_to_their_emoji"]:.0f} | |
| of {recombined} combinations that training never showed: subgroup and colour right | \
{figures["recombined_accepted"]:.0f} | {figures["recombined_accepted_real"]:.0f} |
| subgroup right | {figures["recombined_thing"]:.0f} | {figures["recombined_thing_real"]:.0f} |
| colour right | {figures["recombined_colour"]:.0f} | {figures["recombined_colour_real"]:.0f} |
"""
