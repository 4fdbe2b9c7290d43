"""Who says whether pictures show what was asked for: the judges of the two evaluations in models/ldm, as functions.

One classifier of real emoji, that of emoji-dit's evaluation, for both: of emoji-dit, the share of pictures that it
takes for the class that was asked for; of emoji-flux, drawn from names of the training set, the share that it takes for
the name's subgroup. (emoji-flux's own judge is the same, trained twice as long, and on recoloured pictures: nothing of
the kind is asked for here.) `nearest` is the share of names that are nearest to their own real emoji, pixel by pixel.
`real` is what the classifier says of real pictures: of held-out ones, or of those whose names are drawn.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from models.ldm.classifier import ClassifierConfig, accuracy, train_classifier
from models.ldm.config import DataConfig
from models.ldm.directory import NUM_STEPS
from models.ldm.pictures import load_split
from models.ldm.text_to_image.config import NUM_STEPS as FLUX_STEPS
from models.ldm.text_to_image.dataset import drawn_emoji
from models.ldm.text_to_image.judge import Judge, pictures_from_emoji, pixels_of
from models.shipped import shipped_checkpoints

CLASSIFIER = Path("build/train/classifier.pt")  # where make evaluate keeps it
SEED = 1_000


@dataclass(frozen=True)
class Subject:
    """A model, what is drawn with it, and its judge; either labels or prompts has one item a picture."""

    name: str
    solvers: tuple[str, ...]  # the first is the model's own
    reference: str
    default_steps: tuple[int, ...]
    judged: Callable[[torch.Tensor], dict[str, float]]  # of (N, 3, S, S) in [-1, 1], in the order of what was asked
    real: Mapping[str, float]
    shown: int  # the picture of the strip
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()


def emoji_dit(pictures: int) -> Subject:
    """Classes in turn, as the model's own evaluation asks for them."""
    split = load_split(DataConfig())
    classifier = train_classifier(ClassifierConfig(), split.train, CLASSIFIER)
    labels = tuple(index % len(split.train.classes) for index in range(pictures))
    known = json.loads((shipped_checkpoints()["emoji-dit"] / "figures.json").read_text(encoding="utf-8"))
    return Subject(
        name="emoji-dit",
        solvers=("dpmpp_2m", "unipc", "ddim", "heun"),
        reference="dpmpp_2m",
        default_steps=(NUM_STEPS,),
        judged=lambda found: {"judge": round(accuracy(classifier, found, torch.tensor(labels)), 3)},
        real={"judge": known["classifier_accuracy_held_out"]},
        shown=min(split.train.classes.index("food-fruit"), pictures - 1),
        labels=labels,
    )


def emoji_flux(pictures: int) -> Subject:
    """Names of the training set, drawn at random as the model's own evaluation draws them."""
    data = DataConfig()
    split, emoji = load_split(data), drawn_emoji(data.size)
    classifier = train_classifier(ClassifierConfig(), split.train, CLASSIFIER)
    judge = Judge(pictures_from_emoji(emoji, split.train.classes), classifier)
    asked = sorted(random.Random(SEED).sample(range(len(emoji)), pictures))
    wanted = [emoji[index].caption.subgroup for index in asked]

    def judged(found: torch.Tensor) -> dict[str, float]:
        right = sum(a == b for a, b in zip(judge.subgroups(found), wanted, strict=True))
        nearest = sum(a == b for a, b in zip(judge.nearest(found), asked, strict=True))
        return {"judge": round(right / len(asked), 3), "nearest": round(nearest / len(asked), 3)}

    return Subject(
        name="emoji-flux",
        solvers=("euler", "unipc", "dpmpp_2m", "heun"),
        reference="heun",
        default_steps=(FLUX_STEPS,),
        judged=judged,
        real=judged(pixels_of([emoji[index].picture for index in asked])),
        shown=0,
        prompts=tuple(emoji[index].caption.name for index in asked),
    )


SUBJECTS: Mapping[str, Callable[[int], Subject]] = {"emoji-dit": emoji_dit, "emoji-flux": emoji_flux}
