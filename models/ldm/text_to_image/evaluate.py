"""Measure `emoji-flux`: `python -m models.ldm.text_to_image.evaluate`.

Of 100 names drawn from the training set and of the 100 combinations of `recombined.txt`, which training never showed:
how many drawings does the judge accept? Writes figures.json beside the model, the figures' part of its card, and grids.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from diffusers import FluxPipeline

from models.ldm.journal import save_grid
from models.ldm.text_to_image.card import write_card
from models.ldm.text_to_image.config import CHECKPOINT, GUIDANCE, NUM_STEPS, T5_TOKENS
from models.ldm.text_to_image.dataset import DrawnEmoji, drawn_emoji, recombined_prompts
from models.ldm.text_to_image.directory import drawn
from models.ldm.text_to_image.judge import Judge, colours_of, judge_from_emoji, pixels_of
from models.ldm.text_to_image.recolour import main_colour, recoloured
from models.ldm.text_to_image.train import SHOWN

Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how it is drawn."""

    model: Path = CHECKPOINT
    work: Path = Path("build/train-flux")
    images: Path = Path("docs/images/ldm")
    names: int = 100
    seed: int = 1_000
    num_steps: int = NUM_STEPS
    guidance: float = GUIDANCE
    sequence_length: int = T5_TOKENS


def evaluate(config: EvaluationConfig) -> Figures:
    """Measure, in the order of the card; returns the figures."""
    pipe = load_pipeline(config.model)
    emoji = drawn_emoji(pipe.vae.config.sample_size)
    judge = judge_from_emoji(emoji, config.work / "judge.pt")
    figures = judge_figures(judge, emoji)
    figures |= name_figures(config, pipe, judge, emoji)
    figures |= recombined_figures(config, pipe, judge, emoji)
    save_grid(pictures_of(config, pipe, SHOWN, seed=0), config.images / "emoji-flux.webp", columns=8)
    path = config.model / "figures.json"
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def load_pipeline(folder: Path) -> FluxPipeline:
    """The shipped directory in float32."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: no model there; train it, or give another folder with --model")
    return cast(FluxPipeline, FluxPipeline.from_pretrained(str(folder)))


def pictures_of(config: EvaluationConfig, pipe: FluxPipeline, prompts: Sequence[str], seed: int) -> torch.Tensor:
    """One drawing a prompt, (N, 3, S, S) in [-1, 1], by the pipeline's own defaults but for size and padding."""
    size = pipe.vae.config.sample_size
    return drawn(pipe, list(prompts), seed, config.num_steps, config.guidance, 1.0, config.sequence_length, size)


def judge_figures(judge: Judge, emoji: list[DrawnEmoji]) -> Figures:
    """How often the judge is right about real emoji: the most that a drawing can reach."""
    guesses = judge.subgroups(pixels_of([one.picture for one in emoji]))
    return {"judge_right_of_1870_real": sum(g == one.caption.subgroup for g, one in zip(guesses, emoji, strict=True))}


def name_figures(config: EvaluationConfig, pipe: FluxPipeline, judge: Judge, emoji: list[DrawnEmoji]) -> Figures:
    """Names of the training set: is the subgroup right, and is the real emoji of that name the nearest of all?"""
    asked = sorted(random.Random(config.seed).sample(range(len(emoji)), config.names))
    pictures = pictures_of(config, pipe, [emoji[index].caption.name for index in asked], config.seed)
    save_grid(pictures, config.images / "emoji-flux-names.webp", columns=20, colours=256)
    wanted = [emoji[index].caption.subgroup for index in asked]
    real = judge.subgroups(pixels_of([emoji[index].picture for index in asked]))
    return {
        "names": len(asked),
        "names_accepted": sum(a == b for a, b in zip(judge.subgroups(pictures), wanted, strict=True)),
        "names_accepted_real": sum(a == b for a, b in zip(real, wanted, strict=True)),
        "names_nearest_to_their_emoji": sum(a == b for a, b in zip(judge.nearest(pictures), asked, strict=True)),
    }


def recombined_figures(config: EvaluationConfig, pipe: FluxPipeline, judge: Judge, emoji: list[DrawnEmoji]) -> Figures:
    """Combinations that training never showed: is the thing's subgroup right, and is the colour?"""
    prompts = recombined_prompts()
    pictures = pictures_of(config, pipe, prompts, config.seed)
    save_grid(pictures, config.images / "emoji-flux-recombined.webp", columns=20, colours=256)
    things = [emoji_called(prompt.split(" ", 1)[1], emoji) for prompt in prompts]
    painted = [in_colour(found, prompt.split(" ", 1)[0]) for prompt, found in zip(prompts, things, strict=True)]
    figures: Figures = {"recombined": len(prompts)}
    for suffix, shown in (("", pictures), ("_real", pixels_of(painted))):
        thing = [
            guess in {one.caption.subgroup for one in found}
            for guess, found in zip(judge.subgroups(shown), things, strict=True)
        ]
        colour = [a == prompt.split(" ", 1)[0] for a, prompt in zip(colours_of(shown), prompts, strict=True)]
        figures |= {
            f"recombined_thing{suffix}": sum(thing),
            f"recombined_colour{suffix}": sum(colour),
            f"recombined_accepted{suffix}": sum(a and b for a, b in zip(thing, colour, strict=True)),
        }
    return figures


def in_colour(found: list[DrawnEmoji], word: str) -> np.ndarray:
    """The first of the emoji that can be recoloured, in that colour: (S, S, 3) uint8."""
    for one in found:
        main = main_colour(one.picture)
        if main is not None:
            return recoloured(one.picture, main, word)
    raise ValueError(f"none of {[one.caption.name for one in found]} has one main colour: take it from recombined.txt")


def emoji_called(thing: str, emoji: list[DrawnEmoji]) -> list[DrawnEmoji]:
    """The emoji that a word may mean: by name without colour words, or by everyday word."""
    return [one for one in emoji if thing == one.caption.uncoloured or thing in one.caption.others]


def main() -> int:
    """Exit 1 with one line where something that is needed is missing."""
    default = EvaluationConfig()
    parser = argparse.ArgumentParser(prog="python -m models.ldm.text_to_image.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=default.model, help="a FluxPipeline directory")
    parser.add_argument("--work", type=Path, default=default.work, help="the training run's folder, for the judge")
    parser.add_argument("--images", type=Path, default=default.images, help="where the grids go")
    parser.add_argument("--steps", type=int, default=default.num_steps, help="solver steps")
    parser.add_argument("--guidance", type=float, default=default.guidance)
    parser.add_argument("--sequence-length", type=int, default=default.sequence_length, help="prompts are padded to it")
    given = parser.parse_args()
    try:
        config = EvaluationConfig(
            model=given.model,
            work=given.work,
            images=given.images,
            num_steps=given.steps,
            guidance=given.guidance,
            sequence_length=given.sequence_length,
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
