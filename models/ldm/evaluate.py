"""Measure the shipped model: `python -m models.ldm.evaluate`; `make evaluate` calls it.

Writes figures.json beside the model, the grids into docs/images/ldm/, and the figures' part of the model card. Needs
the data; and the training run's folder for the ablation, whose known figures are kept where that is absent.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

import torch
from diffusers import AutoencoderKL, DiTPipeline

from models.ldm.augment import pixels_from_uint8
from models.ldm.autoencoder import autoencoder_from_config, reconstructed
from models.ldm.card import write_card
from models.ldm.classifier import Classifier, ClassifierConfig, accuracy, train_classifier
from models.ldm.config import CHECKPOINT, AutoencoderConfig, DataConfig
from models.ldm.directory import GUIDANCE, NUM_STEPS, drawn
from models.ldm.journal import load_state, save_grid
from models.ldm.measures import psnr_db, sharpness_ratio
from models.ldm.neighbours import nearest_training_pictures
from models.ldm.pictures import Pictures, Split, load_split

Figures: TypeAlias = dict[str, float]

# The grid that the card shows first, two classes a row: what a newcomer knows at once, and two that it draws badly.
SHOWN = (
    *("face-smiling", "face-concerned", "cat-face", "monkey-face", "heart", "person-role", "face-glasses", "face-hat"),
    *("animal-mammal", "animal-bird", "plant-flower", "food-fruit", "time", "award-medal", "transport-ground"),
    "country-flag",
)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and on how many pictures."""

    model: Path = CHECKPOINT
    work: Path = Path("build/train")
    images: Path = Path("docs/images/ldm")
    data: DataConfig = field(default_factory=DataConfig)
    samples: int = 792  # 8 of each of the 99 classes
    num_steps: int = NUM_STEPS
    guidance: float = GUIDANCE
    seed: int = 1_000
    neighbour_shift: int = 2


def evaluate(config: EvaluationConfig) -> Figures:
    """Measure, in the order of the card; returns the figures."""
    split = load_split(config.data)
    pipe = load_pipeline(config.model)
    check_classes(pipe, split.train.classes)
    path = config.model / "figures.json"
    known: Figures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    figures = known | reconstruction_figures(pipe.vae, split.held_out, config.images / "reconstruction.webp")
    figures |= stage1_figures(config, split.held_out)

    classifier = train_classifier(ClassifierConfig(), split.train, config.work / "classifier.pt")
    labels = [index % len(split.train.classes) for index in range(config.samples)]
    pictures = drawn(pipe, labels, config.seed, config.num_steps, config.guidance)
    figures |= classifier_figures(classifier, split, pictures, torch.tensor(labels))
    figures |= memorisation_figures(config, split, pictures)

    save_grid(overview(config, pipe, split.train.classes), config.images / "samples.webp", columns=8)
    figures = {name: round(value, 4) for name, value in figures.items()}
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def load_pipeline(folder: Path) -> DiTPipeline:
    """The shipped directory in float32."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: no model there; train it (make train), or give another folder with --model")
    pipe = DiTPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return cast(DiTPipeline, pipe)


def check_classes(pipe: DiTPipeline, classes: tuple[str, ...]) -> None:
    """The data must have the model's classes in the model's order, or every accuracy would be meaningless."""
    wanted = {name.replace(",", " "): index for index, name in enumerate(classes)}
    if pipe.labels != wanted:
        different = sorted(set(pipe.labels.items()) ^ set(wanted.items()))
        raise ValueError(
            f"the data has other classes than the model, such as {different[0]}: give the data it was trained on"
        )


def reconstruction_figures(vae: AutoencoderKL, held_out: Pictures, grid: Path) -> Figures:
    """Stage 1 on held-out pictures; the grid shows the first sixteen above their copies."""
    pixels = pixels_from_uint8(held_out.images)
    copies = reconstructed(vae, pixels)
    shown = min(16, len(pixels))
    save_grid(torch.cat([pixels[:shown], copies[:shown]]), grid, columns=shown, colours=128)
    return {
        "held_out_pictures": len(held_out),
        "reconstruction_psnr_db": psnr_db(pixels, copies),
        "reconstruction_sharpness": sharpness_ratio(pixels, copies),
    }


def stage1_figures(config: EvaluationConfig, held_out: Pictures) -> Figures:
    """The same of stage 1's two autoencoders, which differ in the discriminator alone; empty where they are absent."""
    figures: Figures = {}
    for name, folder in (("gan", "autoencoder"), ("no_gan", "autoencoder-no-gan")):
        state = load_state(config.work / folder / "state.pt")
        if state is None:
            continue
        vae = autoencoder_from_config(AutoencoderConfig(), config.data.size)
        trained = cast(dict[str, torch.Tensor], state["autoencoder"])
        vae.load_state_dict({key.removeprefix("vae."): value for key, value in trained.items()})
        found = reconstruction_figures(
            vae.eval(), held_out, config.images / f"reconstruction-{name.replace('_', '-')}.webp"
        )
        figures |= {f"{name}_{key}": value for key, value in found.items() if key.startswith("reconstruction")}
    return figures


def classifier_figures(classifier: Classifier, split: Split, pictures: torch.Tensor, labels: torch.Tensor) -> Figures:
    """Accuracy on real held-out pictures and on drawn ones, whose label is the class that was asked for."""
    real = accuracy(classifier, pixels_from_uint8(split.held_out.images), split.held_out.labels)
    fake = accuracy(classifier, pictures, labels)
    return {
        "classifier_accuracy_training": accuracy(classifier, pixels_from_uint8(split.train.images), split.train.labels),
        "classifier_accuracy_held_out": real,
        "classifier_accuracy_samples": fake,
        "classifier_samples_over_held_out": fake / real,
        "samples": len(labels),
    }


def memorisation_figures(config: EvaluationConfig, split: Split, pictures: torch.Tensor) -> Figures:
    """Distances to the nearest training picture, of drawn pictures and of held-out ones; a grid of pairs."""
    found = nearest_training_pictures(pictures, split.train, config.neighbour_shift)
    held_out = nearest_training_pictures(pixels_from_uint8(split.held_out.images), split.train, config.neighbour_shift)
    pairs = []
    shown = torch.linspace(0, len(pictures) - 1, 48).long()
    neighbours = pixels_from_uint8(split.train.images[found.indices])
    neighbours = torch.where(found.mirrored[:, None, None, None], neighbours.flip(-1), neighbours)
    for index in shown:
        pairs += [pictures[index], neighbours[index]]
    save_grid(torch.stack(pairs), config.images / "neighbours.webp", columns=16, colours=128)
    threshold = held_out.distances.quantile(0.05)
    return {
        "nearest_distance_samples_median": float(found.distances.median()),
        "nearest_distance_held_out_median": float(held_out.distances.median()),
        "nearest_distance_threshold": float(threshold),
        "samples_nearer_than_threshold": float((found.distances < threshold).float().mean()),
        "distinct_neighbours": float(len(found.indices.unique())),
    }


def overview(config: EvaluationConfig, pipe: DiTPipeline, classes: tuple[str, ...]) -> torch.Tensor:
    """Two pictures each of the classes in SHOWN (of the first sixteen, in other data), four classes a row."""
    names = [name for name in SHOWN if name in classes] or list(classes[:16])
    labels = [classes.index(name) for name in names for _ in range(2)]
    return drawn(pipe, labels, seed=0, num_steps=config.num_steps, guidance=config.guidance)


def main() -> int:
    """Exit 1 with one line where something that is needed is missing."""
    default = EvaluationConfig()
    parser = argparse.ArgumentParser(prog="python -m models.ldm.evaluate", description="Measure the shipped model.")
    parser.add_argument(
        "--model", type=Path, default=default.model, help="a DiTPipeline directory that models.ldm.train wrote"
    )
    parser.add_argument("--work", type=Path, default=default.work, help="the training run's folder")
    parser.add_argument("--images", type=Path, default=default.images, help="where the grids go")
    parser.add_argument("--data", type=Path, help="the folder of pictures it was trained on (default: emoji)")
    parser.add_argument("--samples", type=int, default=default.samples)
    parser.add_argument("--steps", type=int, default=default.num_steps, help="solver steps")
    parser.add_argument("--cfg-scale", type=float, default=default.guidance)
    given = parser.parse_args()
    try:
        config = EvaluationConfig(
            model=given.model,
            work=given.work,
            images=given.images,
            data=DataConfig(given.data),
            samples=given.samples,
            num_steps=given.steps,
            guidance=given.cfg_scale,
        )
        figures = evaluate(config)
        if config.model == CHECKPOINT:
            write_card(config.model / "README.md", figures)
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
