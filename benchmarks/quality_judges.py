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
from functools import cache
from pathlib import Path

import torch

from models.ldm.classifier import Classifier, ClassifierConfig, accuracy, train_classifier
from models.ldm.config import DataConfig
from models.ldm.directory import NUM_STEPS
from models.ldm.pictures import Split, load_split
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
    real: Callable[[], Mapping[str, float]]  # what the judge says of real pictures
    shown: int  # the picture of the strip
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()


@cache
def split_of_emoji() -> Split:
    """The data of emoji-dit."""
    return load_split(DataConfig())


@cache
def classifier_of_emoji() -> Classifier:
    """Trained on the first call, unless it is kept: what is drawn does not wait for it."""
    return train_classifier(ClassifierConfig(), split_of_emoji().train, CLASSIFIER)


def emoji_dit(pictures: int) -> Subject:
    """Classes in their order, spread over all."""
    classes = split_of_emoji().train.classes
    labels = tuple(index * len(classes) // pictures for index in range(pictures))
    fruit = classes.index("food-fruit")
    known = json.loads((shipped_checkpoints()["emoji-dit"] / "figures.json").read_text(encoding="utf-8"))
    return Subject(
        name="emoji-dit",
        solvers=("dpmpp_2m", "unipc", "ddim", "heun"),
        reference="dpmpp_2m",
        default_steps=(NUM_STEPS,),
        judged=lambda found: {"judge": round(accuracy(classifier_of_emoji(), found, torch.tensor(labels)), 3)},
        real=lambda: {"judge": known["classifier_accuracy_held_out"]},
        shown=min(range(pictures), key=lambda index: abs(labels[index] - fruit)),
        labels=labels,
    )


def emoji_flux(pictures: int) -> Subject:
    """Names of the training set, chosen at random as the model's own evaluation chooses them."""
    emoji = drawn_emoji(DataConfig().size)
    asked = sorted(random.Random(SEED).sample(range(len(emoji)), pictures))
    wanted = [emoji[index].caption.subgroup for index in asked]

    def judged(found: torch.Tensor) -> dict[str, float]:
        real = pictures_from_emoji(emoji, split_of_emoji().train.classes)
        judge = Judge(real, classifier_of_emoji())
        right = sum(a == b for a, b in zip(judge.subgroups(found), wanted, strict=True))
        nearest = sum(a == b for a, b in zip(judge.nearest(found), asked, strict=True))
        return {"judge": round(right / len(asked), 3), "nearest": round(nearest / len(asked), 3)}

    return Subject(
        name="emoji-flux",
        solvers=("euler", "unipc", "dpmpp_2m", "heun"),
        reference="heun",
        default_steps=(FLUX_STEPS,),
        judged=judged,
        real=lambda: judged(pixels_of([emoji[index].picture for index in asked])),
        shown=0,
        prompts=tuple(emoji[index].caption.name for index in asked),
    )


SUBJECTS: Mapping[str, Callable[[int], Subject]] = {"emoji-dit": emoji_dit, "emoji-flux": emoji_flux}
