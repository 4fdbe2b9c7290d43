"""What a family hands to the compiler: a trained pipeline as plain modules and plain numbers.

Legend for shapes: rows = guidance branches × batch, C/H/W = latent channels, height, width,
f = the autoencoder's factor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn


class SourceError(ValueError):
    """A source directory that cannot be used: one line with what was found and what is possible."""


@dataclass(frozen=True)
class ConditioningInput:
    """One input of the denoiser that comes from the request, not from the loop."""

    name: str
    example: Callable[[int, int, torch.Generator], Tensor]  # (branches, batch, generator) -> [branches, batch, ...]


@dataclass(frozen=True)
class KnownOverflow:
    """Where half precision is known to overflow: a pattern that is searched in node and weight names, and why."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class LatentDiffusion:
    """A trained pipeline in float32 on the CPU, in eval mode.

    denoiser   (sample [rows, C, H, W], timestep [rows], *conditioning [rows, ...]) -> [rows, C, H, W]:
               what the solver calls the model output, learned variance already split off
    decoder    latents [batch, C, H, W] -> image [batch, 3, f·H, f·W] in [0, 1], scale and shift inside
    """

    name: str
    family: str
    pipeline: str
    denoiser: nn.Module
    decoder: nn.Module
    conditioning: tuple[ConditioningInput, ...]
    scheduler: SchedulerMixin
    latent_shape: tuple[int, int, int]  # C, H, W
    image_shape: tuple[int, int, int]  # 3, f·H, f·W
    guided_channels: int  # guidance mixes the first ones; the others are the conditional branch's own
    labels: Mapping[str, int]
    null_label: int
    default_steps: int
    default_cfg_scale: float
    overflows: tuple[KnownOverflow, ...] = ()


@dataclass(frozen=True)
class ReferenceRequest:
    """One request as both sides of a comparison answer it."""

    labels: tuple[int, ...]  # one image each
    seed: int
    steps: int
    cfg_scale: float


@dataclass(frozen=True)
class Lora:
    """One adapter file (arXiv 2106.09685), and how strongly it is applied."""

    file: Path
    scale: float


class Family(Protocol):
    """The adapter of one pipeline class. docs/adr/0004 says why it is a protocol and not a base class."""

    name: str
    pipeline: str

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads a diffusers directory and merges adapters; raises SourceError for one that is not of this family."""

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """Draws with the diffusers pipeline itself: float32 [batch, 3, height, width] in [0, 1]."""
