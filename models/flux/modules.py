"""FLUX's denoiser as the compiler traces it: latents in, latents out, packed inside.

Legend: rows = guidance branches × batch, C/H/W = latent, gh = H/2 and gw = W/2 (the grid of 2×2 patches).
"""

import math

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from models.timesteps import store_timestep_frequencies

PATCH = 2  # FluxPipeline._pack_latents makes one token of 2×2 latent pixels
_EXACT = 2.0**12  # a frequency in turns is split at 12 bits: times a position below 4096 the first part is exact


class TurnsPosEmbed(nn.Module):
    """FluxPosEmbed in float32 and as exact as in float64: ids [tokens, axes] -> cosines and sines [tokens, head].

    diffusers computes the angles in float64, which TensorRT does not have, and a float32 angle of 128 radians is wrong
    by 4e-6. Here an angle is counted in turns, its whole turns are taken off where they are exact, and what remains is
    below one half: the cosine differs from the float64 one by less than 1e-6 at every position below 4096.
    """

    def __init__(self, theta: float, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        turns = [
            1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)) / (2 * math.pi) for size in axes
        ]
        for axis, exact in enumerate(turns):
            coarse = torch.round(exact * _EXACT) / _EXACT  # [size/2]
            self.register_buffer(f"coarse_{axis}", coarse.float(), persistent=False)
            self.register_buffer(f"fine_{axis}", (exact - coarse).float(), persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids float32, whole numbers. Rotary embedding is arXiv 2104.09864."""
        angles = []
        for axis in range(len(self.axes)):
            position = ids[:, axis, None]  # [tokens, 1]
            whole = position * self.get_buffer(f"coarse_{axis}")  # [tokens, size/2], exact
            turns = (whole - torch.round(whole)) + position * self.get_buffer(f"fine_{axis}")
            angles.append(turns)
        angle = 2 * math.pi * torch.cat(angles, dim=-1)[..., None]  # [tokens, head/2, 1]
        pairs = angle.expand(-1, -1, 2).flatten(1)  # [tokens, head]: each angle twice
        return torch.cos(pairs), torch.sin(pairs)


class FluxDenoiser(nn.Module):
    """The transformer with packing, positions and the scale of the timestep inside, as FluxPipeline calls it."""

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        """Changes `transformer`: its sinusoids and its positions are made ready for the trace."""
        super().__init__()
        store_timestep_frequencies(transformer)
        transformer.pos_embed = TurnsPosEmbed(transformer.pos_embed.theta, tuple(transformer.pos_embed.axes_dim))
        self.transformer = transformer
        self.guided: bool = transformer.config.guidance_embeds

    def forward(
        self, sample: Tensor, timestep: Tensor, clip_pooled: Tensor, t5_hidden: Tensor, *guidance_and_grid: Tensor
    ) -> Tensor:
        """sample [rows, C, H, W], timestep [rows] in 0…1000, clip_pooled [rows, d], t5_hidden [rows, tokens, D],
        guidance [rows] only for a guidance-distilled model, grid_rows [gh], grid_columns [gw] -> [rows, C, H, W].
        """
        *guidance, grid_rows, grid_columns = guidance_and_grid
        output: Tensor = self.transformer(
            hidden_states=pack(sample, grid_rows, grid_columns),
            timestep=timestep / 1000,
            guidance=guidance[0] if self.guided else None,
            pooled_projections=clip_pooled,
            encoder_hidden_states=t5_hidden,
            txt_ids=t5_hidden.new_zeros(t5_hidden.shape[1], 3),
            img_ids=position_ids(grid_rows, grid_columns),
            return_dict=False,
        )[0]
        return unpack(output, grid_rows, grid_columns)


def position_ids(grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
    """[gh], [gw] -> [gh·gw, 3]: zero, row, column of each token, as FluxPipeline._prepare_latent_image_ids."""
    row = grid_rows[:, None].expand(-1, grid_columns.shape[0])  # [gh, gw]
    column = grid_columns[None].expand(grid_rows.shape[0], -1)
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)


def pack(latents: Tensor, grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
    """[rows, C, 2·gh, 2·gw] -> [rows, gh·gw, 4·C]."""
    height, width = grid_rows.shape[0], grid_columns.shape[0]
    patches = latents.view(-1, latents.shape[1], height, PATCH, width, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
    """[rows, gh·gw, 4·C] -> [rows, C, 2·gh, 2·gw]."""
    height, width = grid_rows.shape[0], grid_columns.shape[0]
    channels = tokens.shape[2] // PATCH**2
    patches = tokens.view(-1, height, width, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).contiguous()
