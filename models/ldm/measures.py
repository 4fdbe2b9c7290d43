"""Figures of merit for pictures: (N, 3, S, S) float tensors in [-1, 1], pair by pair."""

from __future__ import annotations

import torch
from torch.nn import functional


def psnr_db(originals: torch.Tensor, copies: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over the pictures of each picture's own."""
    error = ((originals - copies).float() / 2.0).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)  # peak 1
    return float((-10.0 * error.log10()).mean())


def laplacian_energy(pixels: torch.Tensor) -> torch.Tensor:
    """Mean magnitude of the 3x3 Laplacian of the luminance, per picture (N,): how much fine detail there is."""
    luminance = (pixels * pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    kernel = pixels.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return functional.conv2d(luminance, kernel).abs().mean(dim=(1, 2, 3))


def sharpness_ratio(originals: torch.Tensor, copies: torch.Tensor) -> float:
    """Laplacian energy of the copies over that of the originals: 1 is as sharp, below 1 is blurred."""
    return float(laplacian_energy(copies.float()).sum() / laplacian_energy(originals.float()).sum())
