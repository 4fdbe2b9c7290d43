"""The GAN of stage 1: PatchGAN discriminator (arXiv 1611.07004), hinge loss, adaptive weight of VQGAN and LDM."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of a picture as real or not: (B, 3, S, S) in [-1, 1] -> (B, 1, s, s) logits.

    Group normalisation where pix2pix has batch normalisation: with that, the verdict on a copy depends on whether
    originals are in its batch, as they are in the discriminator's step and not in the autoencoder's. Tried, with weight
    0.5: copies lost 8 dB within 500 steps, while the autoencoder followed a gradient that meant little.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        body: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, layers + 1):
            stride = 2 if index < layers else 1
            following = channels * min(2**index, 8)
            body += [nn.Conv2d(width, following, 4, stride=stride, padding=1, bias=False)]
            body += [nn.GroupNorm(4, following), nn.LeakyReLU(0.2)]
            width = following
        self.body = nn.Sequential(*body, nn.Conv2d(width, 1, 4, padding=1))
        for module in self.modules():  # as in pix2pix
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(pixels)
        return logits


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: real logits above 1, fake ones below -1."""
    return 0.5 * (functional.relu(1.0 - real).mean() + functional.relu(1.0 + fake).mean())


def adaptive_weight(nll: torch.Tensor, generator_loss: torch.Tensor, last_layer: torch.Tensor) -> torch.Tensor:
    """How much the discriminator counts: |grad nll| / (|grad g| + 1e-4) at the decoder's last layer, at most 1e4.

    Both losses then pull on the decoder with like strength (VQGAN, arXiv 2012.09841, eq. 7; LDM, appendix G).
    """
    from_nll = torch.autograd.grad(nll, last_layer, retain_graph=True)[0]
    from_generator = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)[0]
    weight: torch.Tensor = from_nll.norm() / (from_generator.norm() + 1e-4)
    return weight.clamp(0.0, 1e4).detach()
