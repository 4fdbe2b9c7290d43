"""Stable Diffusion pipelines with random weights, in the layout of v1-5, 2-1 and LCM_Dreamshaper_v7."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import CLIPTokenizer

from tests.pipelines.text_encoders import random_clip
from tests.pipelines.tokenizers import make_clip_tokenizer
from tests.pipelines.vae import random_vae
from tests.pipelines.weights import spread_weights

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

GAINS = {"attn2.to_out": 4.0, "time_emb_proj": 2.0, "conv_out.weight": 2.0}


def random_unet(*, sample_size: int = 8, **config: object) -> UNet2DConditionModel:
    """4 latent channels, two levels with one halving, text of width 32; `config` is UNet2DConditionModel's."""
    defaults = {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,  # which is the number of heads
        "norm_num_groups": 4,
    }
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=sample_size, **(defaults | config))
    spread_weights(unet)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # Text and time lie beside a residual stream, the output beside noise.
            parameter.mul_(next((gain for part, gain in GAINS.items() if part in name), 1.0))
    return unet.eval()


def v1_scheduler() -> SchedulerMixin:
    """v1-5's."""
    return PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)


def v2_scheduler() -> SchedulerMixin:
    """2-1's, which predicts v."""
    return DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    )


def lcm_scheduler() -> SchedulerMixin:
    """LCM_Dreamshaper_v7's."""
    return LCMScheduler(**BETAS)


def make_stable_diffusion(
    directory: Path,
    *,
    version: int = 1,
    distilled: bool = False,
    scheduler: SchedulerMixin | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    variant: str | None = None,
) -> Path:
    """Writes a pipeline of 8×8 latents, 32×32 pixels. Version 2 predicts v, with CLIP-H's tokenizer and activation.

    `distilled` is LatentConsistencyModelPipeline: a U-Net with a guidance input, and LCM's scheduler.
    """
    tokenizer = make_clip_tokenizer(directory / "tokenizer", pad="!" if version == 2 else "<|endoftext|>")
    of_version = {"use_linear_projection": True, "attention_head_dim": (2, 4)} if version == 2 else {}
    if scheduler is None:
        scheduler = lcm_scheduler() if distilled else v2_scheduler() if version == 2 else v1_scheduler()
    pipeline_class = LatentConsistencyModelPipeline if distilled else StableDiffusionPipeline
    pipeline = pipeline_class(
        vae=random_vae(),
        text_encoder=random_clip(tokenizer, activation="gelu" if version == 2 else "quick_gelu"),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=random_unet(**of_version, time_cond_proj_dim=16 if distilled else None),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size, variant=variant)
    publish_tokenizer(directory, "tokenizer", pad="!" if version == 2 else "<|endoftext|>")
    index = json.loads((directory / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # named, and not read
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (directory / "model_index.json").write_text(json.dumps(index, indent=2))
    return directory


def publish_tokenizer(directory: Path, folder: str, *, pad: str) -> None:
    """The files that public checkpoints have, in place of the ones that save_pretrained wrote."""
    shutil.rmtree(directory / folder)
    make_clip_tokenizer(directory / folder, pad=pad)
