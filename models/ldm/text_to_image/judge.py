"""Who says whether a drawing shows what was asked for: a small classifier for the thing, pixels for the colour.

The classifier is that of emoji-dit's evaluation, trained longer and on recoloured pictures too: one that knows pink
pigs alone would take a green pig for a frog. It never sees the combinations that the evaluation asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from models.ldm.augment import pixels_from_uint8
from models.ldm.classifier import Classifier, ClassifierConfig, train_classifier
from models.ldm.emoji import is_held_out
from models.ldm.neighbours import nearest_training_pictures
from models.ldm.pictures import Pictures
from models.ldm.text_to_image.dataset import DrawnEmoji, recolourings
from models.ldm.text_to_image.recolour import most_frequent_word

CONFIG = replace(ClassifierConfig(), steps=2_400)


@dataclass(frozen=True)
class Judge:
    """All real pictures, and a classifier of their subgroups."""

    pictures: Pictures  # every emoji, in the order of Unicode's list
    classifier: Classifier

    @torch.no_grad()
    def subgroups(self, pixels: torch.Tensor) -> list[str]:
        """What the classifier takes each of (N, 3, S, S) in [-1, 1] for."""
        guesses = torch.cat([self.classifier(part).argmax(1) for part in pixels.split(128)])
        return [self.pictures.classes[index] for index in guesses.tolist()]

    def nearest(self, pixels: torch.Tensor) -> list[int]:
        """The real emoji that each of (N, 3, S, S) is nearest to, pixel by pixel."""
        found = nearest_training_pictures(pixels, self.pictures, shift=2)
        return [int(index) for index in found.indices]


def judge_from_emoji(emoji: list[DrawnEmoji], path: Path) -> Judge:
    """Train the classifier without the held-out emoji, or load it from `path`."""
    names = frozenset(one.caption.name for one in emoji)
    seen = [one for one in emoji if not is_held_out(one.key)]
    painted = [replace(one, picture=picture) for one in seen for _, picture in recolourings(one, names)]
    classes = tuple(dict.fromkeys(one.caption.subgroup for one in emoji))
    return Judge(
        pictures_from_emoji(emoji, classes),
        train_classifier(CONFIG, pictures_from_emoji(seen + seen + painted, classes), path),
    )


def colours_of(pixels: torch.Tensor) -> list[str | None]:
    """The colour word for each of (N, 3, S, S) in [-1, 1]."""
    bytes_ = pixels.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [most_frequent_word(np.ascontiguousarray(picture)) for picture in bytes_]


def pixels_of(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures (S, S, 3) uint8 as (N, 3, S, S) float32 in [-1, 1]."""
    return pixels_from_uint8(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))


def pictures_from_emoji(emoji: list[DrawnEmoji], classes: tuple[str, ...]) -> Pictures:
    """All emoji as they are, with the place of their subgroup in `classes` as the label."""
    return Pictures(
        images=torch.from_numpy(np.stack([one.picture for one in emoji])).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([classes.index(one.caption.subgroup) for one in emoji]),
        may_flip=torch.tensor([one.may_flip for one in emoji]),
        keys=tuple(one.key for one in emoji),
        classes=classes,
    )
