"""The cache of stage 2: every training picture encoded once for each augmented version, the encoder frozen.

Before that the latent channels are balanced: each gets mean 0 and the same deviation, by a change of the 1x1
convolutions around the latents that leaves every reconstruction as it was. Stage 1 cares little how a latent channel is
scaled (ours came out with deviations from 0.9 to 3.8), but the denoiser's noise and loss treat all channels alike, and
DiTPipeline knows one scale factor and no shift.

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
    """Latents of the balanced autoencoder at unit scale, ready for the denoiser."""

    values: torch.Tensor  # (V, N, C, s, s) float32, standard deviation 1
    labels: torch.Tensor  # (N,) int64
    scaling_factor: float


@torch.no_grad()
def encoded(vae: AutoencoderKL, pixels: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """The mode of the posterior: (N, 3, S, S) in [-1, 1] -> (N, C, s, s), not yet scaled."""
    return torch.cat([vae.encode(part.to(vae.device)).latent_dist.mode().float().cpu() for part in pixels.split(batch)])


@torch.no_grad()
def balance_channels(vae: AutoencoderKL, shift: torch.Tensor, gain: torch.Tensor) -> None:
    """Make `vae` speak of (z - shift) * gain, both (C,), where it spoke of z. Reconstructions stay as they were."""
    count = len(gain)
    shift, gain = shift.to(vae.device), gain.to(vae.device)
    before, after = vae.quant_conv, vae.post_quant_conv  # (2C, 2C, 1, 1) gives mean and log variance; (C, C, 1, 1)
    before.weight[:count] *= gain[:, None, None, None]
    before.bias[:count] = (before.bias[:count] - shift) * gain
    before.bias[count:] += 2.0 * gain.log()
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight /= gain[None, :, None, None]


def cache_latents(
    vae: AutoencoderKL, pictures: Pictures, versions: int, shift: int, seed: int, path: Path
) -> CachedLatents:
    """Balance `vae`, encode `versions` augmentations of each picture, the first one plain; kept at `path`.

    `vae` is as stage 1 left it, also when the latents are taken from `path`: it is balanced then too.
    """
    state = load_state(path)
    if state is None or cast(torch.Tensor, state["values"]).shape[:2] != (versions, len(pictures)):
        parts = []
        for version in tqdm(range(versions), desc="encode"):
            pixels = pixels_from_uint8(pictures.images)
            if version > 0:
                pixels = augmented(pictures.images, pictures.may_flip, shift, generator_at(seed, version))
            parts.append(encoded(vae.eval(), pixels))
        state = balanced_state(torch.stack(parts))
        save_state(state, path)
    balance_channels(vae, cast(torch.Tensor, state["shift"]), cast(torch.Tensor, state["gain"]))
    return CachedLatents(cast(torch.Tensor, state["values"]), pictures.labels, cast(float, state["scaling_factor"]))


def balanced_state(latents: torch.Tensor) -> dict[str, object]:
    """What the cache holds, from raw latents (V, N, C, s, s). The deviation over all elements stays what it was."""
    shift = latents.mean(dim=(0, 1, 3, 4))  # (C,)
    gain = latents.std() / latents.std(dim=(0, 1, 3, 4))  # (C,)
    balanced = (latents - shift[:, None, None]) * gain[:, None, None]
    factor = measured_scaling_factor(balanced)
    return {"values": balanced * factor, "scaling_factor": factor, "shift": shift, "gain": gain}
