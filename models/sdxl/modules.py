"""Stable Diffusion XL's denoiser as the compiler traces it.

Legend: rows = guidance branches × batch, C/H/W = latents, gh and gw = H and W by the U-Net's multiple, tokens and
width = of the text, widths of the two encoders added.
"""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.unet import embedded_guidance, guidance_embedding, prepare_for_trace, size_multiple


class SDXLDenoiser(nn.Module):
    """The U-Net under both CLIPs' text, CLIP-G's pooled text, and the picture's size (section 2.2 of the paper)."""

    def __init__(self, unet: UNet2DConditionModel, factor: int) -> None:
        super().__init__()
        self.unet = prepare_for_trace(unet)
        self.guidance_embedding = guidance_embedding(unet)
        self.pixels = float(size_multiple(unet) * factor)  # of one cell of the grid, along one axis

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        grid_rows: Tensor,
        grid_columns: Tensor,
        clip_hidden: Tensor,
        clip_2_hidden: Tensor,
        clip_2_pooled: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """sample [rows, C, H, W], timestep float32 [rows], grid_rows [gh] and grid_columns [gw], 0, 1, 2, ….

        clip_hidden [rows, tokens, width L], clip_2_hidden [rows, tokens, width G], clip_2_pooled [rows, projection],
        and of a guidance-distilled U-Net guidance float32 [rows] -> [rows, C, H, W].
        """
        condition = embedded_guidance(self.guidance_embedding, guidance)  # [rows, time_cond_proj_dim]
        time_ids = self._time_ids(grid_rows, grid_columns).expand(clip_2_pooled.shape[0], 6)  # [rows, 6]
        output: Tensor = self.unet(
            sample,
            timestep,
            torch.cat([clip_hidden, clip_2_hidden], dim=-1),  # [rows, tokens, width]
            timestep_cond=condition,
            added_cond_kwargs={"text_embeds": clip_2_pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return output

    def _time_ids(self, grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
        """Original size, crop, target size [6] in pixels, as the pipeline gives them for a picture without a crop."""
        size = torch.cat([grid_rows[-1:] + 1.0, grid_columns[-1:] + 1.0]) * self.pixels  # [2]: height, width
        return torch.cat([size, torch.zeros(2), size])
