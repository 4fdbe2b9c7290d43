"""DiT's denoiser as the compiler traces it."""

from diffusers import DiTTransformer2DModel
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
