"""What a run leaves behind: metrics as JSON lines, grids as PNG, and a checkpoint that is whole or absent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image

# What a checkpoint holds: state dicts and counters. `weights_only` loading admits nothing else.
State: TypeAlias = dict[str, object]


def append_metrics(path: Path, metrics: Mapping[str, float | int | str]) -> None:
    """Add one line of JSON."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(dict(metrics)) + "\n")


def save_grid(pixels: torch.Tensor, path: Path, columns: int, colours: int | None = None) -> None:
    """Write (N, 3, S, S) float in [-1, 1] row by row as a PNG or a lossless WebP, by the name.

    A WebP is a sixth smaller: documents take it. `colours` rounds to a palette of so many.
    """
    count, _, height, width = pixels.shape
    rows = math.ceil(count / columns)
    sheet = torch.full((rows * height, columns * width, 3), 255, dtype=torch.uint8)
    tiles = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
    for index, tile in enumerate(tiles):
        y, x = index // columns * height, index % columns * width
        sheet[y : y + height, x : x + width] = tile
    picture = Image.fromarray(sheet.numpy())
    if colours is not None:
        picture = picture.quantize(colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True, lossless=True)  # each format reads its own word


def save_state(state: State, path: Path) -> None:
    """Write a checkpoint; the name appears only when the file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> State | None:
    """The last checkpoint, or None where there is none."""
    if not path.is_file():
        return None
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
