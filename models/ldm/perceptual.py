"""Perceptual distances for stage 1. Each takes two (B, 3, S, S) float tensors in [-1, 1] and returns (B,) float32.

The default needs no download: the Laplacian-pyramid L1 of Bojanowski et al. (arXiv 1707.05776, eq. 4), which weighs
edges at every scale alike. LPIPS (arXiv 1801.03924) with VGG16 is used where its two weights files are given.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

# VGG16 up to relu5_3: output channels of each 3x3 convolution, "M" for a max pooling. LPIPS taps before each pooling.
VGG16_LAYOUT: tuple[int | str, ...] = (
    64,
    64,
    "M",
    128,
    128,
    "M",
    256,
    256,
    256,
    "M",
    512,
    512,
    512,
    "M",
    512,
    512,
    512,
)
TAP_CHANNELS = (64, 128, 256, 512, 512)


class LaplacianPyramidDistance(nn.Module):
    """Mean absolute difference of each band of the Laplacian pyramid, summed over the bands.

    The paper weighs the sum over band j by 2^(2j), which is the mean over the band up to a constant.
    """

    kernel: torch.Tensor

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.levels = levels
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
        self.register_buffer("kernel", torch.outer(row, row).expand(3, 1, 5, 5).clone(), persistent=False)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        # The pyramid is linear: the pyramid of the difference is the difference of the pyramids.
        residual = left.float() - right.float()  # (B, 3, S, S)
        total = residual.new_zeros(len(residual))  # (B,)
        for _ in range(self.levels - 1):
            blurred = functional.conv2d(functional.pad(residual, (2, 2, 2, 2), mode="replicate"), self.kernel, groups=3)
            down = blurred[..., ::2, ::2]  # (B, 3, S/2, S/2)
            up = functional.interpolate(down, size=residual.shape[-2:], mode="bilinear", align_corners=False)
            total = total + (residual - up).abs().mean(dim=(1, 2, 3))
            residual = down
        return total + residual.abs().mean(dim=(1, 2, 3))


class LearnedPerceptualDistance(nn.Module):
    """LPIPS v0.1 with VGG16.

    Takes the state dicts of torchvision's vgg16 (`features.N.*`) and of lpips' vgg.pth (`linN.model.1.weight`).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vgg16: dict[str, torch.Tensor], linear: dict[str, torch.Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        channels = 3
        for entry in VGG16_LAYOUT:
            if isinstance(entry, int):
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
                channels = entry
            else:
                self.taps.append(len(layers) - 1)
                layers.append(nn.MaxPool2d(2))
        self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        wanted = {f"features.{name}": name for name in self.features.state_dict()}
        missing = sorted(set(wanted) - set(vgg16))
        if missing:
            raise ValueError(f"the VGG16 weights lack {missing[0]}: give the state dict of torchvision's vgg16")
        self.features.load_state_dict({name: vgg16[key] for key, name in wanted.items()})
        for index, width in enumerate(TAP_CHANNELS):
            key = f"lin{index}.model.1.weight"
            if key not in linear or tuple(linear[key].shape) != (1, width, 1, 1):
                raise ValueError(
                    f"the LPIPS weights lack {key} of shape (1, {width}, 1, 1): give vgg.pth of lpips v0.1"
                )
            self.register_buffer(f"linear_{index}", linear[key].float())
        # The shift and scale of lpips' ScalingLayer: ImageNet statistics in the range [-1, 1].
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def _tapped(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        hidden = (pixels - self.mean) / self.std
        found: list[torch.Tensor] = []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.taps:
                unit = hidden / (hidden.square().sum(1, keepdim=True).sqrt() + 1e-10)  # unit length over the channels
                found.append(unit)
        return found

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        total = left.new_zeros(len(left), dtype=torch.float32)
        for index, (a, b) in enumerate(zip(self._tapped(left), self._tapped(right), strict=True)):
            weighted = functional.conv2d((a - b).square(), self.get_buffer(f"linear_{index}"))  # (B, 1, s, s)
            total = total + weighted.float().mean(dim=(1, 2, 3))
        return total


def perceptual_distance(vgg16: Path | None, linear: Path | None) -> nn.Module:
    """LPIPS where both weights files are given, else the Laplacian pyramid."""
    if vgg16 is None and linear is None:
        return LaplacianPyramidDistance()
    if vgg16 is None or linear is None:
        raise ValueError("LPIPS needs two weights files: give --lpips-vgg16 and --lpips-linear, or neither")
    return LearnedPerceptualDistance(state_dict_from_file(vgg16), state_dict_from_file(linear))


def state_dict_from_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or of a torch file; a torch file that holds code is refused by torch itself."""
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
