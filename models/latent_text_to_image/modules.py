"""The VQ decoder of latent diffusion as the compiler traces it. The denoiser is Stable Diffusion's U-Net.

Legend: C/H/W = latents, f = the autoencoder's factor, codes = entries of the codebook.
"""

import torch
from diffusers import VQModel
from torch import Tensor, nn

from models.latent_diffusion import KnownOverflow
from models.upsampling import replace_upsampling

CODEBOOK_IN_FLOAT32 = KnownOverflow(
    r"vae\.quantize", "the nearest code is a comparison of distances: half precision takes another one"
)


class VQDecoder(nn.Module):
    """Latents to pixels: unscale, the nearest code of each latent, decode, and the map from [-1, 1] to [0, 1]."""

    def __init__(self, vae: VQModel) -> None:
        super().__init__()
        replace_upsampling(vae)
        self.vae = vae
        self.factor: float = vae.config.scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """latents [batch, C, H, W] -> image [batch, 3, f·H, f·W] in [0, 1]."""
        codes = self._nearest(1 / self.factor * latents)  # [batch, C, H, W]
        image: Tensor = self.vae.decoder(self.vae.post_quant_conv(codes))
        return torch.clamp(image / 2 + 0.5, 0.0, 1.0)

    def _nearest(self, latents: Tensor) -> Tensor:
        """Each latent as its nearest code, by |z - e|² less |z|²: VectorQuantizer's cdist has no ONNX form."""
        codebook: Tensor = self.vae.quantize.embedding.weight  # [codes, C]
        z = latents.permute(0, 2, 3, 1)  # [batch, H, W, C]
        distances = codebook.square().sum(dim=1) - 2.0 * (z @ codebook.T)  # [batch, H, W, codes]
        nearest = torch.argmin(distances, dim=-1)  # [batch, H, W]
        return self.vae.quantize.embedding(nearest).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
