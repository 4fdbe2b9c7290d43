"""The KL autoencoder of stage 1 as a module that trains: diffusers' AutoencoderKL, the posterior's noise from outside.

B batch · S side in pixels · C latent channels · s = S / 2^(levels-1)
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from models.ldm.config import AutoencoderConfig


def autoencoder_from_config(config: AutoencoderConfig, size: int) -> AutoencoderKL:
    """A new AutoencoderKL; `scaling_factor` is 1 until it is measured."""
    levels = len(config.block_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=size,
        scaling_factor=1.0,
    )


class TrainableAutoencoder(nn.Module):
    """Encode, draw from the posterior with given noise, decode; also the KL of the posterior.

    One forward for all of it, since DistributedDataParallel gathers gradients only of what its `forward` returns.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    @property
    def last_layer(self) -> torch.Tensor:
        weight = self.vae.decoder.conv_out.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels (B, 3, S, S) in [-1, 1], noise (B, C, s, s) -> reconstruction (B, 3, S, S), KL in nats (B,)."""
        moments = self.vae.quant_conv(self.vae.encoder(pixels)).float()  # (B, 2C, s, s)
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=(1, 2, 3))  # (B,)
        latents = mean + noise * (0.5 * log_variance).exp()
        return self.vae.decoder(self.vae.post_quant_conv(latents)), kl


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, pixels: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Decode the mode of the posterior, in evaluation: (N, 3, S, S) in [-1, 1] -> the same, clamped."""
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in pixels.split(batch)]
    return torch.cat(parts).float().clamp(-1.0, 1.0)
