"""A small AutoencoderKL with random weights: no number in it was trained."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL


def random_vae(
    latent_channels: int = 4,
    scaling_factor: float = 0.18215,
    shift_factor: float | None = None,
    *,
    levels: int = 3,
    width: int = 16,
    quant_conv: bool = True,
    latents_mean: list[float] | None = None,
    latents_std: list[float] | None = None,
    force_upcast: bool = True,
    seed: int = 0,
) -> AutoencoderKL:
    """`levels` levels: 2^(levels - 1) pixels per latent. Latents of deviation 1 give pictures of full contrast."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(*[width] * (levels - 1), 2 * width),
        norm_num_groups=width // 2,
        latent_channels=latent_channels,
        sample_size=8 * 2 ** (levels - 1),
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        latents_mean=latents_mean,
        latents_std=latents_std,
        force_upcast=force_upcast,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
    ).eval()
    with torch.no_grad():
        # As drawn, the posterior is a small mean under a deviation of 1: an encoder without effect on the picture.
        last = vae.quant_conv if quant_conv else vae.encoder.conv_out
        last.weight[:latent_channels] *= 5.0 / scaling_factor
        last.bias[latent_channels:] -= 1.0
        vae.decoder.conv_out.weight *= 2.0
    return vae


def make_vae(
    directory: Path,
    latent_channels: int = 4,
    scaling_factor: float = 0.18215,
    shift_factor: float | None = None,
    **options: object,
) -> Path:
    """Writes `random_vae` to `directory` (…/vae) as diffusers does: config.json and safetensors."""
    random_vae(latent_channels, scaling_factor, shift_factor, **options).save_pretrained(directory)
    return directory
