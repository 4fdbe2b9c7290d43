"""Stable Diffusion's denoiser as the compiler traces it.

Legend: rows = guidance branches × batch, C/H/W = latents, tokens and width = of the text.
"""

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.unet import embedded_guidance, guidance_embedding, prepare_for_trace


class UNetDenoiser(nn.Module):
    """The U-Net under the last hidden states of a text encoder."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = prepare_for_trace(unet)
        self.guidance_embedding = guidance_embedding(unet)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        """sample [rows, C, H, W], timestep float32 [rows], text [rows, tokens, width] -> [rows, C, H, W].

        A guidance-distilled U-Net also has guidance float32 [rows].
        """
        condition = embedded_guidance(self.guidance_embedding, guidance)  # [rows, time_cond_proj_dim]
        output: Tensor = self.unet(sample, timestep, text, timestep_cond=condition, return_dict=False)[0]
        return output
