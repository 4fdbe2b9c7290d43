"""SANA's denoiser and its deep-compression decoder as the compiler traces them, around diffusers' own blocks.

Legend: rows = guidance branches × batch, C = latent channels, p = patch size (1 in all published models), gh/gw =
rows and columns of patches, H = p·gh, W = p·gw, D = width, S = tokens of the prompt.

What is replaced (diffusers 0.42.1), and why: the outer forward of SanaTransformer2DModel, whose sizes come from the
latents' shape and whose caption.view(rows, -1, D) has an unknown length for the exporter; and the attention
processor of AutoencoderDC, which asks whether a picture has more pixels than a head has channels, and so limits
the symbolic sizes. The blocks, which hold the weights, are diffusers' own.
"""

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from torch import Tensor, nn

from models.positions import SincosPositions
from models.timesteps import store_timestep_frequencies

MASKED = -10000.0  # what diffusers adds to the scores of tokens that are padding


class SanaDenoiser(nn.Module):
    """The linear diffusion transformer (arXiv 2410.10629, section 2.2)."""

    def __init__(self, transformer: SanaTransformer2DModel) -> None:
        """Changes `transformer`: its sinusoids are stored."""
        super().__init__()
        store_timestep_frequencies(transformer)
        config = transformer.config
        self.patch_size: int = config.patch_size
        self.channels: int = config.in_channels
        self.timestep_scale: float = config.timestep_scale
        self.patches = transformer.patch_embed.proj
        self.positions = None if config.interpolation_scale is None else SincosPositions(transformer.patch_embed)
        self.transformer = transformer

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        gemma_hidden: Tensor,
        gemma_mask: Tensor,
        grid_rows: Tensor | None = None,
        grid_columns: Tensor | None = None,
    ) -> Tensor:
        """sample [rows, C, H, W], timestep [rows], gemma_hidden [rows, S, text width], gemma_mask [rows, S] 1 or 0
        -> [rows, C, H, W]. grid_rows [gh] and grid_columns [gw] only where `positions` is there.
        """
        model = self.transformer
        embedding = model.time_embed.emb
        embedded = embedding.timestep_embedder(embedding.time_proj(timestep * self.timestep_scale))  # [rows, D]
        modulation = model.time_embed.linear(model.time_embed.silu(embedded))  # [rows, 6·D]
        text = model.caption_norm(model.caption_projection(gemma_hidden))  # [rows, S, D]
        bias = ((1 - gemma_mask) * MASKED)[:, None]  # [rows, 1, S]

        picture = self.patches(sample)  # [rows, D, gh, gw]
        height, width = picture.shape[2:]
        hidden = picture.flatten(2).transpose(1, 2)  # [rows, gh·gw, D]
        if self.positions is not None:
            hidden = hidden + self.positions(grid_rows, grid_columns)
        for block in model.transformer_blocks:
            hidden = block(
                hidden,
                encoder_hidden_states=text,
                encoder_attention_mask=bias,
                timestep=modulation,
                height=height,
                width=width,
            )  # [rows, gh·gw, D]

        hidden = model.proj_out(model.norm_out(hidden, embedded, model.scale_shift_table))  # [rows, gh·gw, p·p·out]
        patches = hidden.unflatten(2, (self.patch_size, self.patch_size, -1))  # [rows, gh·gw, p, p, out]
        grid = patches.unflatten(1, (height, width))  # [rows, gh, gw, p, p, out]
        output: Tensor = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [rows, out, H, W]
        return output[:, : self.channels]


class LinearAttentionProcessor:
    """Multi-scale linear attention (arXiv 2205.14756) at every size.

    diffusers takes the quadratic form for at most 32 pixels: the same sums in another order.
    """

    def __call__(self, attention: SanaMultiscaleLinearAttention, hidden_states: Tensor) -> Tensor:
        """hidden_states [batch, C, H, W] -> [batch, C', H, W]; d = channels of a head."""
        height, width = hidden_states.shape[2:]
        pixels = hidden_states.movedim(1, -1)  # [batch, H, W, C]
        projected = [attention.to_q(pixels), attention.to_k(pixels), attention.to_v(pixels)]
        scale = torch.cat(projected, dim=3).movedim(-1, 1)  # [batch, 3·heads·d, H, W]
        scales = torch.cat([scale, *(block(scale) for block in attention.to_qkv_multiscale)], dim=1)
        heads = scales.flatten(2).unflatten(1, (-1, 3 * attention.attention_head_dim))  # [batch, heads', 3·d, H·W]
        query, key, value = heads.chunk(3, dim=2)
        query, key = attention.nonlinearity(query), attention.nonlinearity(key)
        mixed = attention.apply_linear_attention(query, key, value)  # [batch, heads', d, H·W]
        out = attention.to_out(mixed.flatten(1, 2).unflatten(2, (height, width)).movedim(1, -1))  # [batch, H, W, C']
        if attention.norm_type == "rms_norm":
            result: Tensor = attention.norm_out(out).movedim(-1, 1)
        else:
            result = attention.norm_out(out.movedim(-1, 1))
        return result + hidden_states if attention.residual_connection else result


class DCDecoder(nn.Module):
    """Latents to pixels with AutoencoderDC (arXiv 2410.10733): unscale, decode, and [-1, 1] to [0, 1]."""

    def __init__(self, vae: AutoencoderDC) -> None:
        super().__init__()
        for module in vae.modules():
            if isinstance(module, SanaMultiscaleLinearAttention):
                module.processor = LinearAttentionProcessor()
        self.vae = vae
        self.scaling_factor: float = vae.config.scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """latents [batch, C, H, W] -> image [batch, 3, f·H, f·W] in [0, 1]."""
        image: Tensor = self.vae.decode(latents / self.scaling_factor, return_dict=False)[0]
        return torch.clamp(image / 2 + 0.5, 0.0, 1.0)
