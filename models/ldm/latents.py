"""The cache of stage 2: every training picture encoded once for each augmented version, the encoder frozen.

N pictures · V versions · C latent channels · s latent side
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from models.ldm.augment import augmented, generator_at, pixels_from_uint8
from models.ldm.journal import load_state, save_state
from models.ldm.pictures import Pictures
from models.ldm.train_autoencoder import measured_scaling_factor


@dataclass(frozen=True)
class CachedLatents:
    """Latents at unit scale, ready for the denoiser."""

    values: torch.Tensor  # (V, N, C, s, s) float32, standard deviation 1
    labels: torch.Tensor  # (N,) int64
    scaling_factor: float


@torch.no_grad()
def encoded(vae: AutoencoderKL, pixels: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """The mode of the posterior: (N, 3, S, S) in [-1, 1] -> (N, C, s, s), not yet scaled."""
    return torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode().float().cpu() for part in pixels.split(batch)])


def cache_latents(
    vae: AutoencoderKL, pictures: Pictures, versions: int, shift: int, seed: int, path: Path
) -> CachedLatents:
    """Encode `versions` augmentations of each picture, the first one plain; kept at `path` for the next start."""
    state = load_state(path)
    if state is not None:
        values, factor = cast(torch.Tensor, state["values"]), cast(float, state["scaling_factor"])
        if values.shape[:2] == (versions, len(pictures)):
            return CachedLatents(values, pictures.labels, factor)
    vae.eval()
    parts = []
    for version in tqdm(range(versions), desc="encode"):
        pixels = pixels_from_uint8(pictures.images)
        if version > 0:
            pixels = augmented(pictures.images, pictures.may_flip, shift, generator_at(seed, version))
        parts.append(encoded(vae, pixels))
    latents = torch.stack(parts)  # (V, N, C, s, s)
    factor = measured_scaling_factor(latents)
    cached = CachedLatents(latents * factor, pictures.labels, factor)
    save_state({"values": cached.values, "scaling_factor": factor}, path)
    return cached
