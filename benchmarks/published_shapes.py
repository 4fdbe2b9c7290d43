"""Pipelines at the size of the published checkpoints, as modules on the meta device: shapes, and no number.

    flux-dev, sd3.5-large, dit-xl-2      the denoiser, the VAE and CLIP as published; T5 of the real width and one block
    t5-xxl                               all 24 blocks of T5-XXL, and PixArt-Σ's pipeline around it with a tiny denoiser
    flux-N, sd3-N                        N blocks (FLUX: N double, 2N single) of the published width, with a small VAE
    dit-s-2, dit-b-2, dit-l-2            DiT's smaller sizes
    sd3-small                            SD3's block at a width of 768, 150 M parameters, for 256²; the VAE as published

Configurations are those of black-forest-labs/FLUX.1-dev, stabilityai/stable-diffusion-3.5-large,
PixArt-alpha/PixArt-Sigma-XL-2-1024-MS and facebook/DiT-XL-2-256.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

T5_WIDTH, T5_BLOCKS = 4096, 24
DIT = {"s": (12, 6), "b": (12, 12), "l": (24, 16), "xl": (28, 16)}  # blocks, heads (arXiv 2212.09748, table 1)
WIDE, NARROW = (128, 256, 512, 512), (32, 32, 64, 64)  # channels of a VAE's levels: the published ones, and small ones
DIT_WIDTH = {"s": 384, "b": 768, "l": 1024, "xl": 1152}


@dataclass(frozen=True)
class Shapes:
    """One pipeline: its modules and tokenizers by their folder, and the class that names it in model_index.json."""

    pipeline: type
    scheduler: SchedulerMixin
    modules: Mapping[str, nn.Module]
    tokenizers: Mapping[str, str] = field(default_factory=dict)  # folder -> clip, clip! (padded with "!") or t5
    dtype: str = "bf16"


def shapes_of(model: str) -> Shapes:
    """By the names above; raises ValueError for others."""
    named: dict[str, Callable[[], Shapes]] = {
        "flux-dev": lambda: flux(19, 38),
        "sd3.5-large": lambda: sd3(38),
        "t5-xxl": pixart,
        "sd3-small": sd3_small,
        **{f"dit-{size}-2": lambda size=size: dit(size) for size in DIT},  # type: ignore[misc]
    }
    numbered = re.fullmatch(r"(flux|sd3)-([1-9]\d?)", model)
    if model in named:
        return named[model]()
    if numbered is not None:
        count = int(numbered[2])
        return flux(count, 2 * count, NARROW) if numbered[1] == "flux" else sd3(count, NARROW)
    raise ValueError(f"{model}: no such model; give {', '.join(named)}, flux-N or sd3-N")


def flux(double: int, single: int, vae_channels: tuple[int, ...] = WIDE) -> Shapes:
    """FLUX.1-dev with so many blocks: 19 and 38 are the published ones."""
    with torch.device("meta"):
        modules = {
            "transformer": FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True),
            "vae": vae(16, 0.3611, 0.1159, channels=vae_channels),
            "text_encoder": CLIPTextModel(clip_l()),
            "text_encoder_2": t5(1),
        }
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, shift=3.0,
        use_dynamic_shifting=True,
    )  # fmt: skip
    return Shapes(FluxPipeline, scheduler, modules, {"tokenizer": "clip", "tokenizer_2": "t5"})


def sd3(blocks: int, vae_channels: tuple[int, ...] = WIDE) -> Shapes:
    """SD3.5-large with so many blocks: 38 are the published ones. With a narrow VAE it is for 256²."""
    with torch.device("meta"):
        modules = {
            "transformer": SD3Transformer2DModel(
                sample_size=128 if vae_channels == WIDE else 32,
                num_layers=blocks, num_attention_heads=38, attention_head_dim=64, out_channels=16,
                caption_projection_dim=2432, joint_attention_dim=T5_WIDTH, pooled_projection_dim=2048,
                pos_embed_max_size=192, qk_norm="rms_norm",
            ),
            "vae": vae(16, 1.5305, 0.0609, channels=vae_channels),
            "text_encoder": CLIPTextModelWithProjection(clip_l()),
            "text_encoder_2": CLIPTextModelWithProjection(clip_g()),
            "text_encoder_3": t5(1),
        }  # fmt: skip
    tokenizers = {"tokenizer": "clip", "tokenizer_2": "clip!", "tokenizer_3": "t5"}
    return Shapes(StableDiffusion3Pipeline, FlowMatchEulerDiscreteScheduler(shift=3.0), modules, tokenizers)


def sd3_small() -> Shapes:
    """An SD3 that two CPU cores draw in seconds: 7 blocks of 12 heads, small text encoders, float32; 256²."""
    joint = 512
    with torch.device("meta"):
        modules = {
            "transformer": SD3Transformer2DModel(
                sample_size=32, num_layers=7, num_attention_heads=12, attention_head_dim=64, out_channels=16,
                caption_projection_dim=768, joint_attention_dim=joint, pooled_projection_dim=joint,
                pos_embed_max_size=48, qk_norm="rms_norm",
            ),
            "vae": vae(16, 1.5305, 0.0609, sample_size=256),
            "text_encoder": CLIPTextModelWithProjection(small_clip(192, "quick_gelu")),
            "text_encoder_2": CLIPTextModelWithProjection(small_clip(320, "gelu")),
            "text_encoder_3": T5EncoderModel(
                T5Config(
                    vocab_size=32128, d_model=joint, d_kv=64, d_ff=1024, num_layers=4, num_heads=8,
                    feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                )
            ),
        }  # fmt: skip
    tokenizers = {"tokenizer": "clip", "tokenizer_2": "clip!", "tokenizer_3": "t5"}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Shapes(StableDiffusion3Pipeline, scheduler, modules, tokenizers, dtype="fp32")


def pixart() -> Shapes:
    """The whole T5-XXL, before a denoiser of two narrow blocks that draws 64×64 pixels."""
    with torch.device("meta"):
        modules = {
            "transformer": PixArtTransformer2DModel(
                num_attention_heads=4, attention_head_dim=12, cross_attention_dim=48, caption_channels=T5_WIDTH,
                num_layers=2, sample_size=8,
            ),
            "vae": vae(4, 0.13025, sample_size=64, channels=NARROW),
            "text_encoder": t5(T5_BLOCKS),
        }  # fmt: skip
    return Shapes(PixArtSigmaPipeline, DPMSolverMultistepScheduler(), modules, {"tokenizer": "t5"})


def dit(size: str) -> Shapes:
    """DiT-S/2 to DiT-XL/2 at 256², with the VAE of Stable Diffusion."""
    blocks, heads = DIT[size]
    with torch.device("meta"):
        modules = {
            "transformer": DiTTransformer2DModel(
                num_attention_heads=heads, attention_head_dim=DIT_WIDTH[size] // heads, num_layers=blocks,
                sample_size=32, patch_size=2, in_channels=4, out_channels=8, num_embeds_ada_norm=1000,
            ),
            "vae": vae(4, 0.18215, sample_size=256),
        }  # fmt: skip
    return Shapes(DiTPipeline, DDIMScheduler(clip_sample=False), modules, dtype="fp32")


def vae(
    latent_channels: int,
    scaling_factor: float,
    shift_factor: float | None = None,
    sample_size: int | None = None,
    channels: tuple[int, ...] = WIDE,
) -> AutoencoderKL:
    """The VAE of Stable Diffusion, FLUX and SD3: 84 M parameters, 8 pixels a latent; a narrow one is for 256²."""
    sample_size = sample_size or (1024 if channels == WIDE else 256)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels), up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels, layers_per_block=2, latent_channels=latent_channels, sample_size=sample_size,
        scaling_factor=scaling_factor, shift_factor=shift_factor, use_quant_conv=latent_channels == 4,
        use_post_quant_conv=latent_channels == 4,
    )  # fmt: skip


def clip_l() -> CLIPTextConfig:
    """CLIP ViT-L/14's text tower, with the end-of-text id of the old files, which pool where the id is largest."""
    return CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
        hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def clip_g() -> CLIPTextConfig:
    """OpenCLIP bigG/14's text tower."""
    return CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280,
        hidden_act="gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def small_clip(width: int, activation: str) -> CLIPTextConfig:
    """A text tower of four narrow layers, with the published vocabulary and length."""
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=4, num_attention_heads=width // 64,
        projection_dim=width, hidden_act=activation, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def t5(blocks: int) -> T5EncoderModel:
    """T5 v1.1-XXL's encoder: 24 blocks are the published ones, 4.7 B parameters."""
    return T5EncoderModel(
        T5Config(
            vocab_size=32128, d_model=T5_WIDTH, d_kv=64, d_ff=10240, num_layers=blocks, num_heads=64,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    )  # fmt: skip
