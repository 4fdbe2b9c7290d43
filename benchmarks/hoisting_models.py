"""The raw denoisers that hoisting is measured on: one builder an architecture, sized by its arguments.

Classes are diffusers', weights are random. Nothing is built on import: `make` and `examples` are called by the tracer,
under fake tensors where only sizes are wanted.

Legend: n = text tokens, rows = guidance branches × batch, H/W = latent.
"""

from collections.abc import Callable, Mapping

import diffusers
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.hoisting_denoiser import LOOP, PROMPT, SCHEDULE, Denoiser


def flux(
    name: str, *, double: int, single: int, heads: int, head_dim: int, text: tuple[int, int], pooled: int, side: int
) -> Denoiser:
    """FLUX's transformer for side × side packed tokens; text = (n, width). One branch: its guidance is an input."""
    first, rest = head_dim // 8, head_dim * 7 // 16
    axes = (first, rest, rest)  # 16, 56, 56 of 128

    def make() -> nn.Module:
        net: nn.Module = diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=double, num_single_layers=single, attention_head_dim=head_dim,
            num_attention_heads=heads, joint_attention_dim=text[1], pooled_projection_dim=pooled,
            guidance_embeds=True, axes_dims_rope=axes,
        )  # fmt: skip
        return net

    def examples() -> Mapping[str, Tensor]:
        return {
            "hidden_states": torch.randn(3, side * side, 64),
            "encoder_hidden_states": torch.randn(3, *text),
            "pooled_projections": torch.randn(3, pooled),
            "timestep": torch.full((3,), 0.5),
            "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(side) * 1.0, torch.arange(side) * 1.0),
            "txt_ids": torch.zeros(text[0], 3),
            "guidance": torch.full((3,), 3.5),
        }

    return _raw(name, make, examples, Dim("batch"), rows=1, fixed=("img_ids", "txt_ids"), timestep_scale=1.0)


def sd3(
    name: str, *, layers: int, heads: int, head_dim: int, size: int, text: tuple[int, int], pooled: int
) -> Denoiser:
    """SD3's MMDiT for latents [16, size, size]; two rows, conditional and unconditional."""

    def make() -> nn.Module:
        net: nn.Module = diffusers.SD3Transformer2DModel(
            sample_size=size, patch_size=2, in_channels=16, out_channels=16, num_layers=layers,
            attention_head_dim=head_dim, num_attention_heads=heads, joint_attention_dim=text[1],
            caption_projection_dim=heads * head_dim, pooled_projection_dim=pooled, pos_embed_max_size=192,
        )  # fmt: skip
        return net

    def examples() -> Mapping[str, Tensor]:
        return {
            "hidden_states": torch.randn(3, 16, size, size),
            "encoder_hidden_states": torch.randn(3, *text),
            "pooled_projections": torch.randn(3, pooled),
            "timestep": torch.full((3,), 500.0),
        }

    return _raw(name, make, examples, Dim("batch"), rows=2)


class PixArt(nn.Module):
    """PixArt with the micro-conditions that its forward asks for and does not use at 512²."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        """hidden_states [rows, 4, H, W], encoder_hidden_states [rows, n, width], the mask [rows, n]."""
        conditions = {"resolution": None, "aspect_ratio": None}
        output: Tensor = self.net(
            hidden_states, encoder_hidden_states, timestep, encoder_attention_mask=encoder_attention_mask,
            added_cond_kwargs=conditions,
        ).sample  # fmt: skip
        return output


def pixart(name: str, *, layers: int, heads: int, head_dim: int, size: int, text: tuple[int, int]) -> Denoiser:
    """PixArt-alpha (cross-attention, one shared adaLN) for latents [4, size, size]."""

    def make() -> nn.Module:
        return PixArt(
            diffusers.PixArtTransformer2DModel(
                num_attention_heads=heads, attention_head_dim=head_dim, in_channels=4, out_channels=8,
                num_layers=layers, cross_attention_dim=heads * head_dim, sample_size=size, patch_size=2,
                caption_channels=text[1], use_additional_conditions=False,
            )
        )  # fmt: skip

    def examples() -> Mapping[str, Tensor]:
        return {
            "hidden_states": torch.randn(3, 4, size, size),
            "encoder_hidden_states": torch.randn(3, *text),
            "timestep": torch.full((3,), 500.0),
            "encoder_attention_mask": torch.ones(3, text[0]),
        }

    return _raw(name, make, examples, Dim("batch"), rows=2)


def unet(
    name: str, *, channels: tuple[int, ...], layers: int, heads: int, size: int, text: tuple[int, int]
) -> Denoiser:
    """Stable Diffusion's U-Net for latents [4, size, size]; cross-attention at all levels but the last."""
    deep = len(channels) - 1

    def make() -> nn.Module:
        net: nn.Module = diffusers.UNet2DConditionModel(
            sample_size=size, block_out_channels=channels, layers_per_block=layers, cross_attention_dim=text[1],
            attention_head_dim=heads, down_block_types=("CrossAttnDownBlock2D",) * deep + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deep,
        )  # fmt: skip
        return net

    def examples() -> Mapping[str, Tensor]:
        return {
            "sample": torch.randn(3, 4, size, size),
            "timestep": torch.full((3,), 500.0),
            "encoder_hidden_states": torch.randn(3, *text),
        }

    return _raw(name, make, examples, Dim("batch", max=63), rows=2)  # the bound that torch.export finds itself


def _raw(
    name: str,
    make: Callable[[], nn.Module],
    examples: Callable[[], Mapping[str, Tensor]],
    batch: Dim,
    rows: int,
    fixed: tuple[str, ...] = (),
    timestep_scale: float = 1000.0,
) -> Denoiser:
    """A denoiser as diffusers calls it: its first input is the latents, all but the timestep is the prompt's."""
    names = list(examples())
    classes = dict.fromkeys(names, PROMPT) | {names[0]: LOOP, "timestep": SCHEDULE}
    dynamic = {key: {} if key in fixed else {0: batch} for key in names}
    return Denoiser(name, make, examples, dynamic, classes, {"batch": rows}, timestep_scale)
