"""What the U-Net families share: loading diffusers' UNet2DConditionModel, its sizes, and what tracing asks of it.

Legend: rows = guidance branches × batch, C/H/W = latents, tokens and width = of the text.
Knows no pipeline: what else a pipeline hands to its U-Net (size conditioning, a guidance scale) is its family's.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.components import load_component
from models.latent_diffusion import SourceError
from models.timesteps import store_timestep_frequencies
from models.upsampling import replace_upsampling

MAX_PERIOD = 10000.0  # of get_guidance_scale_embedding


def load_unet(source: Path, pipeline: str, latent_channels: int, addition: str | None = None) -> UNet2DConditionModel:
    """Reads SOURCE/unet; raises SourceError for one that wants more inputs than `pipeline` has for it.

    `addition` is the addition_embed_type that the pipeline serves: None, or "text_time" (SDXL).
    """
    unet = load_component(UNet2DConditionModel, source, "unet")
    config = unet.config
    wanted = {
        "addition_embed_type": addition,
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim_type": None,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
    }
    for name, value in wanted.items():
        if config[name] != value:
            raise SourceError(
                f"{source / 'unet'}: {name} is {config[name]!r}, and {pipeline} here has a U-Net with {value!r}; "
                f"inpainting, upscaling and image prompts are other pipelines, which are not supported"
            )
    if config.sample_size is None:
        raise SourceError(f"{source / 'unet'}: sample_size is null; write the size of training in its config.json")
    rows, columns = default_size(unet)
    multiple = size_multiple(unet)
    if rows % multiple or columns % multiple:
        raise SourceError(
            f"{source / 'unet'}: sample_size is {config.sample_size!r}, which is no multiple of {multiple}: it halves "
            f"its picture {int(math.log2(multiple))} times; correct sample_size in its config.json"
        )
    return unet


def default_size(unet: UNet2DConditionModel) -> tuple[int, int]:
    """H and W of the latents that the pipelines draw by default."""
    size: int | tuple[int, int] = unet.config.sample_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def size_multiple(unet: UNet2DConditionModel) -> int:
    """What H and W are a multiple of, so that each halving and doubling is exact."""
    return 1 << int(unet.num_upsamplers)


def prepare_for_trace(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Frequencies as stored numbers, upsampling without limits of rows and pixels; in place, numbers unchanged."""
    store_timestep_frequencies(unet)
    replace_upsampling(unet)

    def time_embedding(sample: Tensor, timestep: Tensor) -> Tensor:  # timestep has its [rows] already
        embedded: Tensor = unet.time_proj(timestep)
        return embedded

    # diffusers 0.42.1 expands the timestep to sample.shape[0]: everything that it leads to would be of the loop.
    unet.get_time_embed = time_embedding
    return unet


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Holds back diffusers' advice to publishers of checkpoints, such as that a config is of an old kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class GuidanceEmbedding(nn.Module):
    """get_guidance_scale_embedding of a guidance-distilled U-Net (LCM: arXiv 2310.04378), frequencies stored.

    guidance float32 [rows] -> [rows, channels]; what is embedded is the scale less one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        assert channels == 2 * half, "an odd number of channels would need a column of zeros"
        step = torch.log(torch.tensor(MAX_PERIOD)) / (half - 1)
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies[None], persistent=False)  # [1, half]

    def forward(self, guidance: Tensor) -> Tensor:
        """As the pipelines: sine and cosine of 1000·(guidance - 1)·frequency."""
        argument = ((guidance - 1.0) * 1000.0)[:, None] * self.frequencies  # [rows, half]
        return torch.cat([torch.sin(argument), torch.cos(argument)], dim=-1)


def guidance_embedding(unet: UNet2DConditionModel) -> GuidanceEmbedding | None:
    """Of a guidance-distilled U-Net; None for any other."""
    channels: int | None = unet.config.time_cond_proj_dim
    return None if channels is None else GuidanceEmbedding(channels)


def embedded_guidance(embedding: GuidanceEmbedding | None, guidance: Tensor | None) -> Tensor | None:
    """guidance float32 [rows] -> what the U-Net takes as timestep_cond: [rows, channels], or None for None."""
    assert (embedding is None) == (guidance is None), "a guidance-distilled U-Net has guidance, and no other has it"
    return None if embedding is None else embedding(guidance)
