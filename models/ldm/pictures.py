"""A set of labelled pictures in memory, from the emoji font or from any folder, and its fixed held-out split.

B batch · N pictures · S side in pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.ldm.config import NULL_CLASS, DataConfig
from models.ldm.emoji import DataError, EmojiRenderer, emoji_from_list, is_held_out

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})

# A mirrored picture of these classes means something else, or nothing: script, directions, clocks, countries, maps.
UNFLIPPABLE = frozenset(
    {
        "arrow",
        "alphanum",
        "keycap",
        "flag",
        "country-flag",
        "subdivision-flag",
        "time",
        "math",
        "punctuation",
        "currency",
    }
    | {"av-symbol", "other-symbol", "transport-sign", "warning", "zodiac", "religion", "gender", "place-map", "money"}
    | {"music", "award-medal", "book-paper", "office", "computer", "mail", "event", "game"}
)


@dataclass(frozen=True)
class Pictures:
    """N pictures with what training needs to know of each."""

    images: torch.Tensor  # (N, 3, S, S) uint8
    labels: torch.Tensor  # (N,) int64, index into `classes`
    may_flip: torch.Tensor  # (N,) bool
    keys: tuple[str, ...]  # (N,) stable names: code points, or paths inside the folder
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, mask: torch.Tensor) -> Pictures:
        """The pictures for which `mask` (N,) is true; the classes stay as they are."""
        keys = tuple(key for key, keep in zip(self.keys, mask.tolist(), strict=True) if keep)
        return Pictures(self.images[mask], self.labels[mask], self.may_flip[mask], keys, self.classes)


@dataclass(frozen=True)
class Split:
    """The two parts of a data set; no picture is in both."""

    train: Pictures
    held_out: Pictures


def pictures_from_emoji(size: int) -> Pictures:
    """Every emoji that the font draws as one glyph, in the order of Unicode's list."""
    renderer = EmojiRenderer(size)
    drawn = [(emoji, picture) for emoji in emoji_from_list() if (picture := renderer.render(emoji)) is not None]
    names = list(dict.fromkeys(emoji.subgroup for emoji, _ in drawn))
    return Pictures(
        images=_stacked([picture for _, picture in drawn]),
        labels=torch.tensor([names.index(emoji.subgroup) for emoji, _ in drawn]),
        may_flip=torch.tensor([emoji.subgroup not in UNFLIPPABLE for emoji, _ in drawn]),
        keys=tuple(emoji.key for emoji, _ in drawn),
        classes=tuple(names),
    )


def pictures_from_folder(folder: Path, size: int) -> Pictures:
    """Every picture in the sub-folders of `folder`, each one a class; on white, cropped to a square."""
    if not folder.is_dir():
        raise DataError(f"--data {folder}: no such folder; give one that has a sub-folder of pictures for each class")
    paths = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"--data {folder}: no pictures in its sub-folders ({', '.join(sorted(IMAGE_SUFFIXES))})")
    names = sorted({path.relative_to(folder).parts[0] for path in paths})
    if len(names) > NULL_CLASS:
        raise DataError(f"--data {folder}: {len(names)} classes; DiTPipeline has room for {NULL_CLASS}")
    return Pictures(
        images=_stacked([_square(path, size) for path in paths]),
        labels=torch.tensor([names.index(path.relative_to(folder).parts[0]) for path in paths]),
        may_flip=torch.ones(len(paths), dtype=torch.bool),
        keys=tuple(path.relative_to(folder).as_posix() for path in paths),
        classes=tuple(names),
    )


def load_split(config: DataConfig) -> Split:
    """The data of one run, split by the hash of each picture's key."""
    source = (
        pictures_from_emoji(config.size) if config.folder is None else pictures_from_folder(config.folder, config.size)
    )
    held_out = torch.tensor([is_held_out(key) for key in source.keys])
    if bool(held_out.all()) or not bool(held_out.any()):
        raise DataError(f"{len(source)} pictures are too few to hold some out: give at least a few dozen")
    return Split(source.where(~held_out), source.where(held_out))


def _stacked(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # (N, 3, S, S)


def _square(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as opened:
        rgba = opened.convert("RGBA")
    side = min(rgba.size)
    left, top = (rgba.width - side) // 2, (rgba.height - side) // 2
    rgba = rgba.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
