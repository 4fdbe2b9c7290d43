"""How far the model memorises: the nearest training picture of each drawn one, by pixel distance.

A distance alone says little: it is set beside the distance at which real held-out pictures lie from the training set.
Small shifts and the mirror image count as the same picture, since training showed them too.

N drawn pictures · M training pictures · D pixels of a picture at half size, all channels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from models.ldm.augment import pixels_from_uint8, shifted
from models.ldm.pictures import Pictures


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each of N pictures."""

    indices: torch.Tensor  # (N,) int64 into the training set
    distances: torch.Tensor  # (N,) root mean square difference, 0..2 for pixels in [-1, 1]
    mirrored: torch.Tensor  # (N,) bool: it is nearest to the mirror image


def nearest_training_pictures(pixels: torch.Tensor, training: Pictures, shift: int) -> Nearest:
    """Compare (N, 3, S, S) in [-1, 1] with all training pictures, moved by `shift` pixels at most, or mirrored."""
    queries = _halved(pixels)  # (N, D)
    best = torch.full((len(pixels),), float("inf"))
    indices = torch.zeros(len(pixels), dtype=torch.int64)
    mirrored = torch.zeros(len(pixels), dtype=torch.bool)
    references = pixels_from_uint8(training.images)
    for flip in (False, True):
        source = references.flip(-1) if flip else references
        for dy in range(-shift, shift + 1):
            for dx in range(-shift, shift + 1):
                moved = _halved(shifted(source, torch.tensor([dy, dx]).expand(len(source), 2), shift))  # (M, D)
                distances = torch.cdist(queries, moved) / queries.shape[1] ** 0.5  # (N, M)
                if flip:
                    distances = distances.masked_fill(~training.may_flip, float("inf"))
                nearest, where = distances.min(dim=1)
                closer = nearest < best
                best, indices = torch.where(closer, nearest, best), torch.where(closer, where, indices)
                mirrored = torch.where(closer, torch.tensor(flip), mirrored)
    return Nearest(indices, best, mirrored)


def _halved(pixels: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(pixels, 2).flatten(1)
