"""SDXL pipelines with random weights, in the layout of stable-diffusion-xl-base-1.0 and sdxl-turbo."""

from pathlib import Path

import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import CLIPTokenizer

from tests.pipelines.stable_diffusion import BETAS, publish_tokenizer, random_unet
from tests.pipelines.text_encoders import random_clip, random_clip_with_projection
from tests.pipelines.tokenizers import make_clip_tokenizer
from tests.pipelines.vae import random_vae

CLIP_L, CLIP_G, PROJECTION, SIZE_CHANNELS = 32, 48, 40, 8


def random_sdxl_unet(**config: object) -> UNet2DConditionModel:
    """Text of both CLIPs, pooled text and six size numbers; two levels, attention in the second."""
    defaults = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 1),
        "use_linear_projection": True,
        "cross_attention_dim": CLIP_L + CLIP_G,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_CHANNELS,
        "projection_class_embeddings_input_dim": PROJECTION + 6 * SIZE_CHANNELS,
    }
    return random_unet(**(defaults | config))


def base_scheduler() -> SchedulerMixin:
    """The base model's."""
    return EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")


def turbo_scheduler() -> SchedulerMixin:
    """sdxl-turbo's."""
    return EulerAncestralDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="trailing")


def make_sdxl(
    directory: Path,
    *,
    distilled: bool = False,
    force_zeros: bool = True,
    scheduler: SchedulerMixin | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
) -> Path:
    """Writes a pipeline of 8×8 latents, 32×32 pixels. `distilled` adds the guidance input of LCM to the U-Net."""
    tokenizers = [
        make_clip_tokenizer(directory / "tokenizer"),
        make_clip_tokenizer(directory / "tokenizer_2", pad="!"),
    ]
    pipeline = StableDiffusionXLPipeline(
        vae=random_vae(scaling_factor=0.13025),
        text_encoder=random_clip(tokenizers[0], width=CLIP_L),
        text_encoder_2=random_clip_with_projection(tokenizers[1], width=CLIP_G, projection=PROJECTION),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizers[0]),
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizers[1]),
        unet=random_sdxl_unet(time_cond_proj_dim=16 if distilled else None),
        scheduler=scheduler or base_scheduler(),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )
    pipeline.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    publish_tokenizer(directory, "tokenizer", pad="<|endoftext|>")
    publish_tokenizer(directory, "tokenizer_2", pad="!")
    return directory
