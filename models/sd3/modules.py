"""Stable Diffusion 3's denoiser as the compiler traces it: the text's parts are put together inside.

Legend: rows = guidance branches × batch, C/H/W = latent, p = patch size, gh = H/p and gw = W/p (the grid of patches),
D = joint_attention_dim, E = width of the transformer.
"""

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from models.timesteps import store_timestep_frequencies


class CroppedPositions(nn.Module):
    """The centre of a square table of position embeddings, cut out by *values* of the grid, not by its shape.

    PatchEmbed.cropped_pos_embed slices by the shape of the latents, which would tie the positions to the loop.
    """

    def __init__(self, table: Tensor, largest: int) -> None:
        """table [side, side, E]; grids are at most `largest` long: what lies further out is left away."""
        super().__init__()
        side = len(table)
        margin = max(side - largest, 0) // 2  # the same on both sides, so that the centre stays where it is
        self.side = side - 2 * margin
        self.table: Tensor
        self.register_buffer("table", table[margin : side - margin, margin : side - margin].clone(), persistent=False)

    def forward(self, grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
        """grid_rows [gh], grid_columns [gw] -> [gh·gw, E]."""
        rows = self.table.index_select(0, self._centred(grid_rows))  # [gh, side, E]
        return rows.index_select(1, self._centred(grid_columns)).flatten(0, 1)

    def _centred(self, grid: Tensor) -> Tensor:
        first = torch.floor((self.side - 1 - grid[-1]) / 2)  # half of what the grid does not need
        return (first + grid).long()


class SD3Denoiser(nn.Module):
    """The transformer as StableDiffusion3Pipeline calls it, and the joining of its text encoders' outputs.

    Its forward is written out here because SD3Transformer2DModel's own computes the positions from the latents.
    """

    def __init__(self, transformer: SD3Transformer2DModel, largest_grid: int, empty_tokens: int | None) -> None:
        """`empty_tokens`: where there is no T5, how many zeros stand in its place. Changes `transformer`."""
        super().__init__()
        store_timestep_frequencies(transformer)
        embed = transformer.pos_embed
        side: int = embed.pos_embed_max_size
        self.positions = CroppedPositions(embed.pos_embed.unflatten(1, (side, side))[0], largest_grid)
        embed.pos_embed = None
        self.transformer = transformer
        self.patch: int = transformer.config.patch_size
        self.channels: int = transformer.out_channels
        self.joint_width: int = transformer.config.joint_attention_dim
        self.empty_tokens = empty_tokens

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        clip_hidden: Tensor,
        clip_pooled: Tensor,
        clip_2_hidden: Tensor,
        clip_2_pooled: Tensor,
        *t5_and_grid: Tensor,
    ) -> Tensor:
        """sample [rows, C, H, W], timestep [rows] in 0…1000, clip*_hidden [rows, tokens, d], clip*_pooled [rows, d],
        t5_hidden [rows, tokens, D] only where there is a T5, grid_rows [gh], grid_columns [gw] -> [rows, C, H, W].
        """
        *t5, grid_rows, grid_columns = t5_and_grid
        clip = torch.cat([clip_hidden, clip_2_hidden], dim=-1)  # [rows, tokens, d + d2]
        clip = functional.pad(clip, (0, self.joint_width - clip.shape[-1]))  # [rows, tokens, D]
        text = torch.cat([clip, *(t5 or self._instead_of_t5(clip))], dim=1)  # [rows, all tokens, D]
        net = self.transformer
        condition = net.time_text_embed(timestep, torch.cat([clip_pooled, clip_2_pooled], dim=-1))  # [rows, E]
        hidden = net.pos_embed.proj(sample).flatten(2).transpose(1, 2)  # [rows, gh·gw, E]
        hidden = hidden + self.positions(grid_rows, grid_columns)
        text = net.context_embedder(text)
        for block in net.transformer_blocks:
            text, hidden = block(hidden_states=hidden, encoder_hidden_states=text, temb=condition)
        patches = net.proj_out(net.norm_out(hidden, condition))  # [rows, gh·gw, p·p·C]
        return self._unpatch(patches, grid_rows.shape[0], grid_columns.shape[0])

    def _instead_of_t5(self, clip: Tensor) -> list[Tensor]:
        return [] if self.empty_tokens is None else [clip.new_zeros(clip.shape[0], self.empty_tokens, self.joint_width)]

    def _unpatch(self, patches: Tensor, height: int, width: int) -> Tensor:
        """[rows, gh·gw, p·p·C] -> [rows, C, p·gh, p·gw]."""
        grid = patches.view(-1, height, width, self.patch, self.patch, self.channels)
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).contiguous()
