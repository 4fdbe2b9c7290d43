"""Upsampling by two without conditions on the number of rows or pixels, for U-Nets and decoders.

diffusers' `Upsample2D` makes its input contiguous from 64 rows on, and from 2^31 elements on, for bugs of old torch
versions. torch.export (2.13) takes the branch of the example and writes the other one down as a limit: a U-Net
accepts at most 63 rows then (`Dim("batch", max=63)`), and symbolic sizes end in a "constraint violated" error.
"""

import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


class Doubling(nn.Module):
    """`Upsample2D` as U-Nets and autoencoders use it: every pixel four times, then a convolution if there is one."""

    def __init__(self, original: Upsample2D) -> None:
        super().__init__()
        plain = original.norm is None and not original.use_conv_transpose and original.interpolate
        assert plain, "an Upsample2D of another kind than U-Nets and autoencoders have"
        assert original.name == "conv", "a convolution by its old name"
        self.conv: nn.Module | None = original.conv

    def forward(self, hidden_states: Tensor, output_size: None = None) -> Tensor:
        """hidden_states [rows, C, H, W] -> [rows, C', 2·H, 2·W]."""
        assert output_size is None, "the size is a multiple of the U-Net's factor, so doubling is exact"
        doubled = F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
        return doubled if self.conv is None else self.conv(doubled)


def replace_upsampling(module: nn.Module) -> None:
    """Replaces every `Upsample2D` below `module`, in place; weights keep their names."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Upsample2D):
                setattr(parent, name, Doubling(child))
