"""diffusers' AutoencoderKL (Rombach et al., arXiv 2112.10752, section 3.1) as the modules that the compiler traces.

Legend: C/H/W = latents, f = `latent_factor`. Scale and shift of the latents are inside, in the order of diffusers'
pipelines; batch, H and W may be symbolic. Knows no family: what a VAE has (quant_conv, shift_factor, latents_mean)
is read off its config.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.latent_diffusion import KnownOverflow
from models.upsampling import replace_upsampling

# diffusers runs both halves of such a VAE in float32 (force_upcast of its config); the decoder is where it is black.
_OVERFLOWING = r"vae\.(encoder|decoder\.(up_blocks|conv_norm_out|conv_out))\."
SDXL_VAE_OVERFLOW = KnownOverflow(
    _OVERFLOWING, "the SDXL VAE overflows in its decoder's up blocks: black images in fp16"
)
FLUX_VAE_OVERFLOW = KnownOverflow(_OVERFLOWING, "the FLUX VAE overflows in its decoder's up blocks (force_upcast)")


def latent_factor(vae: AutoencoderKL) -> int:
    """Pixels per latent along one axis: one halving between each two of the VAE's levels."""
    halvings = len(vae.config.block_out_channels) - 1
    return 1 << halvings


class LatentScale(nn.Module):
    """The affine map between the VAE's latents and the denoiser's, channel by channel."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.factor: float = vae.config.scaling_factor
        self.shift: float = vae.config.shift_factor or 0.0
        self.mean: Tensor | None
        self.deviation: Tensor | None
        both = vae.config.latents_mean is not None and vae.config.latents_std is not None  # Playground v2.5 has them
        self.register_buffer("mean", _per_channel(vae.config.latents_mean) if both else None, persistent=False)
        self.register_buffer("deviation", _per_channel(vae.config.latents_std) if both else None, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """The VAE's latents [batch, C, H, W] as the denoiser sees them."""
        if self.mean is not None and self.deviation is not None:
            return (latents - self.mean) * self.factor / self.deviation
        return (latents - self.shift if self.shift else latents) * self.factor

    def inverse(self, latents: Tensor) -> Tensor:
        """The denoiser's latents [batch, C, H, W] as the VAE decodes them."""
        if self.mean is not None and self.deviation is not None:
            return latents * self.deviation / self.factor + self.mean
        unscaled = latents / self.factor
        return unscaled + self.shift if self.shift else unscaled


class KLDecoder(nn.Module):
    """Latents to pixels: unscale, decode, and the map from [-1, 1] to [0, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        replace_upsampling(vae)
        self.scale = LatentScale(vae)
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """latents [batch, C, H, W] -> image [batch, 3, f·H, f·W] in [0, 1]."""
        image: Tensor = self.vae.decode(self.scale.inverse(latents), return_dict=False)[0]
        return torch.clamp(image / 2 + 0.5, 0.0, 1.0)


class KLEncoder(nn.Module):
    """Pixels to latents: a sample of the posterior with noise from outside, and the latents' scale."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.scale = LatentScale(vae)
        self.vae = vae

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """image [batch, 3, f·H, f·W] in [0, 1], noise [batch, C, H, W] -> latents [batch, C, H, W]."""
        posterior = self.vae.encode(2.0 * image - 1.0, return_dict=False)[0]  # log-variance clamped to -30 … 20
        sample: Tensor = posterior.mean + posterior.std * noise  # [batch, C, H, W]
        return self.scale(sample)  # type: ignore[no-any-return]


def _per_channel(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1, 1)
