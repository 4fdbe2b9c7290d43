"""Batches as a pure function of (seed, step, rank): a resumed run sees exactly what an uninterrupted one sees.

B batch · S side in pixels
"""

from __future__ import annotations

import torch
from torch.nn import functional

from models.ldm.pictures import Pictures


def generator_at(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random stream of one step in one process, independent of all other steps."""
    return torch.Generator("cpu").manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


def pixels_from_uint8(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) uint8 to float32 in [-1, 1], the range of AutoencoderKL."""
    return images.float().div(127.5).sub(1.0)


def shifted(images: torch.Tensor, offsets: torch.Tensor, limit: int) -> torch.Tensor:
    """Move each picture by its (dy, dx) pixels, the border repeated.

    images (B, 3, S, S) float; offsets (B, 2) int64 within ±limit.
    """
    if limit == 0:
        return images
    size = images.shape[-1]
    padded = functional.pad(images, (limit,) * 4, mode="replicate")  # (B, 3, S + 2 limit, S + 2 limit)
    starts = (limit - offsets).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, starts, strict=True)])


def augmented(images: torch.Tensor, may_flip: torch.Tensor, shift: int, generator: torch.Generator) -> torch.Tensor:
    """Shift each picture and mirror half of those that may be. (B, 3, S, S) uint8 -> float32 in [-1, 1]."""
    batch = len(images)
    flip = (torch.rand(batch, generator=generator) < 0.5) & may_flip
    offsets = torch.randint(-shift, shift + 1, (batch, 2), generator=generator)
    pixels = pixels_from_uint8(images)
    pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    return shifted(pixels, offsets, shift)


def batch_at(pictures: Pictures, batch: int, shift: int, generator: torch.Generator) -> torch.Tensor:
    """One batch of stage 1, (B, 3, S, S) float32. Stage 1 has no labels, so that every picture may be mirrored."""
    chosen = torch.randint(len(pictures), (batch,), generator=generator)
    return augmented(pictures.images[chosen], torch.ones(batch, dtype=torch.bool), shift, generator)
