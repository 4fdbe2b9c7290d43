"""StableDiffusion3Pipeline directories with random weights, in the layout of the published SD 3 and SD 3.5."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTokenizer, T5TokenizerFast

from tests.pipelines.text_encoders import random_clip_with_projection, random_t5
from tests.pipelines.tokenizers import make_clip_tokenizer, make_t5_tokenizer
from tests.pipelines.vae import random_vae
from tests.pipelines.weights import spread_weights

WIDTHS = (32, 48)  # of CLIP-L and CLIP-G, whose projections are as wide
JOINT_WIDTH = 96  # of T5, more than both together as in the published ones


def random_sd3_transformer(*, sd35: bool = False, layers: int = 3, seed: int = 10) -> SD3Transformer2DModel:
    """Blocks of width 64 for 16 latent channels; as SD 3.5 medium with `sd35`: dual attention, normalised q and k."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=JOINT_WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=24,  # larger than any picture, as the published 192 and 384
        dual_attention_layers=(0,) if sd35 else (),
        qk_norm="rms_norm" if sd35 else None,
    )
    spread_weights(transformer, seed=seed)
    return transformer.eval()


def make_sd3(
    directory: Path,
    *,
    sd35: bool = False,
    t5: bool = True,
    layers: int = 3,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
) -> Path:
    """Writes a pipeline that draws 32×32 pixels (latents of 8×8) by default; without `t5` its places hold null."""
    tokenizer = make_clip_tokenizer(directory / "tokenizer")
    tokenizer_2 = make_clip_tokenizer(directory / "tokenizer_2", pad="!")
    tokenizer_3 = make_t5_tokenizer(directory / "tokenizer_3") if t5 else None
    large, larger = WIDTHS
    pipeline = StableDiffusion3Pipeline(
        transformer=random_sd3_transformer(sd35=sd35, layers=layers),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=random_vae(16, scaling_factor=1.5305, shift_factor=0.0609, quant_conv=False),
        text_encoder=random_clip_with_projection(tokenizer, width=large, activation="quick_gelu"),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        text_encoder_2=random_clip_with_projection(tokenizer_2, width=larger, seed=3),
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizer_2),
        text_encoder_3=None if tokenizer_3 is None else random_t5(tokenizer_3, width=JOINT_WIDTH),
        tokenizer_3=None if tokenizer_3 is None else T5TokenizerFast.from_pretrained(tokenizer_3),
    )
    pipeline.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory
