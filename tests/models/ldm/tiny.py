"""The smallest training that has every part: 16 x 16 pictures of two classes, networks of a few thousand weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.ldm.augment import generator_at
from models.ldm.config import AutoencoderConfig, TransformerConfig
from models.ldm.pictures import Pictures, Split

AUTOENCODER = replace(
    AutoencoderConfig(),
    block_channels=(8, 8),
    norm_groups=4,
    discriminator_channels=4,
    adversarial_start=2,
    steps=4,
    decay_steps=1,
    warmup_steps=2,
    batch=2,
    shift=1,
    log_every=1,
    save_every=1,
)
TRANSFORMER = replace(
    TransformerConfig(),
    heads=2,
    head_dim=4,
    layers=2,
    steps=4,
    decay_steps=2,
    warmup_steps=1,
    batch=4,
    cached_versions=2,
    shift=1,
    log_every=1,
    save_every=1,
)


def pictures(count: int, seed: int) -> Pictures:
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator_at(seed, 0), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    flips = torch.ones(count, dtype=torch.bool)
    return Pictures(images, labels, flips, tuple(f"{seed}-{index}" for index in range(count)), ("dots", "more, dots"))


def split() -> Split:
    return Split(train=pictures(8, seed=1), held_out=pictures(4, seed=2))
