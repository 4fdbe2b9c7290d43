"""PixArt's denoiser as the compiler traces it: diffusers' blocks between a head and a tail of our own.

Legend: rows = guidance branches × batch, C = latent channels, p = patch size, gh/gw = rows and columns of
patches, H = p·gh, W = p·gw, D = width, S = tokens of the prompt.

The forward of PixArtTransformer2DModel (diffusers 0.42.1) is not traced, for three reasons. It takes the sizes of
positions and patches from the latents' shape, so that a trace holds one size, or hoists nothing; it squeezes a
dimension that is not 1, which torch 2.13 exports as an invalid Squeeze; and its caption.view(rows, -1, D) has an
unknown length for the exporter. The blocks, which hold the weights, are diffusers' own.
"""

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.loaders.peft import PeftAdapterMixin
from torch import Tensor, nn

from models.positions import SincosPositions
from models.timesteps import store_timestep_frequencies

MASKED = -10000.0  # what diffusers adds to the scores of tokens that are padding


class AdaptablePixArt(PixArtTransformer2DModel, PeftAdapterMixin):  # type: ignore[misc]  # diffusers has no types
    """PixArtTransformer2DModel with the mixin through which diffusers loads LoRA, which it lacks (0.42.1)."""

    # The published α checkpoints hold the original's embedding of no caption, which no diffusers pipeline uses.
    _keys_to_ignore_on_load_unexpected = (r"^caption_projection\.y_embedding$",)


class MicroConditions(nn.Module):
    """The pixel size and the aspect ratio as PixArt-α's 1024 px models know them (arXiv 2310.00426, appendix).

    diffusers' module computes them for each row of the batch; they are the same for all, and known from the grid.
    """

    def __init__(self, transformer: PixArtTransformer2DModel, pixels_per_patch: int) -> None:
        super().__init__()
        embedding = transformer.adaln_single.emb
        self.frequencies = embedding.additional_condition_proj
        self.resolution_embedder = embedding.resolution_embedder
        self.aspect_ratio_embedder = embedding.aspect_ratio_embedder
        self.pixels_per_patch = pixels_per_patch

    def forward(self, grid_rows: Tensor, grid_columns: Tensor) -> Tensor:
        """grid_rows [gh], grid_columns [gw] -> [1, D]."""
        height = (grid_rows[-1:] + 1) * self.pixels_per_patch  # [1]
        width = (grid_columns[-1:] + 1) * self.pixels_per_patch  # [1]
        resolution = self.resolution_embedder(self.frequencies(torch.cat([height, width])))  # [2, D/3]
        aspect_ratio = self.aspect_ratio_embedder(self.frequencies(height / width))  # [1, D/3]
        return torch.cat([resolution.flatten()[None], aspect_ratio], dim=1)


class PixArtDenoiser(nn.Module):
    """The transformer, with the learned variance (arXiv 2102.09672) split off: solvers here do not use it."""

    def __init__(self, transformer: PixArtTransformer2DModel, pixels_per_latent: int) -> None:
        """Changes `transformer`: its sinusoids are stored."""
        super().__init__()
        store_timestep_frequencies(transformer)
        config = transformer.config
        self.patch_size: int = config.patch_size
        self.channels: int = config.in_channels
        self.patches = transformer.pos_embed.proj
        self.positions = SincosPositions(transformer.pos_embed)
        self.micro_conditions = (
            MicroConditions(transformer, pixels_per_latent * config.patch_size)
            if transformer.use_additional_conditions
            else None
        )
        self.transformer = transformer

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        t5_hidden: Tensor,
        t5_mask: Tensor,
        grid_rows: Tensor,
        grid_columns: Tensor,
    ) -> Tensor:
        """sample [rows, C, H, W], timestep [rows], t5_hidden [rows, S, text width], t5_mask [rows, S] 1 or 0,
        grid_rows [gh], grid_columns [gw] -> [rows, C, H, W].
        """
        model = self.transformer
        embedded = model.adaln_single.emb.timestep_embedder(model.adaln_single.emb.time_proj(timestep))  # [rows, D]
        if self.micro_conditions is not None:
            embedded = embedded + self.micro_conditions(grid_rows, grid_columns)
        modulation = model.adaln_single.linear(model.adaln_single.silu(embedded))  # [rows, 6·D]
        text = t5_hidden if model.caption_projection is None else model.caption_projection(t5_hidden)  # [rows, S, D]
        bias = ((1 - t5_mask) * MASKED)[:, None]  # [rows, 1, S]

        hidden: Tensor = self.patches(sample).flatten(2).transpose(1, 2)  # [rows, gh·gw, D]
        hidden = hidden + self.positions(grid_rows, grid_columns)
        for block in model.transformer_blocks:
            hidden = block(
                hidden, encoder_hidden_states=text, encoder_attention_mask=bias, timestep=modulation
            )  # [rows, gh·gw, D]

        shift, scale = (model.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)  # [rows, 1, D] each
        hidden = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)  # [rows, gh·gw, p·p·out]
        patches = hidden.unflatten(2, (self.patch_size, self.patch_size, -1))  # [rows, gh·gw, p, p, out]
        grid = patches.unflatten(1, (grid_rows.shape[0], grid_columns.shape[0]))  # [rows, gh, gw, p, p, out]
        picture: Tensor = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [rows, out, H, W]
        return picture[:, : self.channels]
