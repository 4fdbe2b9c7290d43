"""DiT's denoiser and decoder as the compiler traces them."""

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.loaders.peft import PeftAdapterMixin
from torch import Tensor, nn


class AdaptableDiT(DiTTransformer2DModel, PeftAdapterMixin):  # type: ignore[misc]  # diffusers has no types
    """DiTTransformer2DModel with the mixin through which diffusers loads LoRA, which it lacks (0.42.1)."""


class DiTDenoiser(nn.Module):
    """The transformer, with the learned variance (arXiv 2102.09672) split off: solvers here do not use it."""

    def __init__(self, transformer: DiTTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.channels: int = transformer.config.in_channels

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """sample [rows, C, H, W], timestep float32 [rows], class_labels int64 [rows] -> [rows, C, H, W]."""
        output: Tensor = self.transformer(sample, timestep=timestep, class_labels=class_labels).sample
        return output[:, : self.channels]


class DiTDecoder(nn.Module):
    """Latents to pixels: unscale, decode, and the map from [-1, 1] to [0, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor: float = vae.config.scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """latents [batch, C, H, W] -> image [batch, 3, f·H, f·W] in [0, 1]."""
        image: Tensor = self.vae.decode(latents / self.scaling_factor).sample
        return torch.clamp(image / 2 + 0.5, 0.0, 1.0)
