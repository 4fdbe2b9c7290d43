"""One step of the sampling loop, and the decoder behind it, as modules with everything fused in.

Legend: slots = 1 + calls + noise draws, k = guidance branches, b = batch, C/H/W = latent, m = its multiple.
Knows no solver (a row of numbers comes in) and no family (the denoiser and its inputs are handed in).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.latent_diffusion import GRID_COLUMNS, GRID_ROWS, LatentDiffusion

GRIDS = (GRID_ROWS, GRID_COLUMNS)  # the inputs that have no rows


class DenoiseStep(nn.Module):
    """The history's combination, the denoiser, and classifier-free guidance (arXiv 2207.12598).

    Guidance is Σ_k weight[k]·output[k]: (g, 1 - g) over (conditional, unconditional) is the usual
    rule, and one branch of weight 1 is no guidance, at half the work.
    """

    def __init__(self, denoiser: nn.Module, guided_channels: int, conditioning: Sequence[str]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.guided_channels = guided_channels
        self.has_rows = tuple(name not in GRIDS for name in conditioning)

    def forward(
        self, history: Tensor, input_row: Tensor, timestep: Tensor, guidance_weights: Tensor, *conditioning: Tensor
    ) -> Tensor:
        """history [slots, b, C, H, W], input_row [slots], timestep [k, b], guidance_weights [k] -> [b, C, H, W].

        Conditioning is [k, b, …], but for the grids: [H/m] and [W/m].
        """
        branches, batch = timestep.shape
        sample = combine(input_row, history)  # [b, C, H, W]
        rows = sample.expand(branches, *sample.shape).flatten(0, 1)  # [k·b, C, H, W]
        flat = (c.flatten(0, 1) if has else c for c, has in zip(conditioning, self.has_rows, strict=True))
        output = self.denoiser(rows, timestep.flatten(), *flat)
        output = output.unflatten(0, (branches, batch))  # [k, b, C, H, W]
        guided = combine(guidance_weights, output)  # [b, C, H, W]
        if self.guided_channels == output.shape[2]:
            return guided
        return torch.cat([guided[:, : self.guided_channels], output[0, :, self.guided_channels :]], dim=1)


class DecodeStep(nn.Module):
    """The history's last combination and the decoder: history [slots, b, C, H, W] -> image [b, 3, f·H, f·W]."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, history: Tensor, output_row: Tensor) -> Tensor:
        """output_row [slots]; the image is float32 in [0, 1]."""
        image: Tensor = self.decoder(combine(output_row, history))
        return image


def combine(weights: Tensor, terms: Tensor) -> Tensor:
    """Σ_i weights[i]·terms[i]: [n] and [n, ...] -> [...], in the dtype that they have (float32)."""
    return (weights @ terms.flatten(1)).view(terms.shape[1:])


@dataclass(frozen=True)
class FusedStep:
    """A pipeline as the two modules that the loop calls."""

    model: LatentDiffusion
    denoise: DenoiseStep
    decode: DecodeStep


def fuse_step(model: LatentDiffusion) -> FusedStep:
    """Puts solver arithmetic, guidance, and latent scale inside the modules that are traced."""
    denoise = DenoiseStep(model.denoiser, model.guided_channels, model.conditioning)
    return FusedStep(model, denoise, DecodeStep(model.decoder))
