"""FluxPipeline directories with random weights, in the layout of black-forest-labs/FLUX.1-dev and FLUX.1-schnell."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTokenizer, T5TokenizerFast

from tests.pipelines.text_encoders import random_clip, random_t5
from tests.pipelines.tokenizers import make_clip_tokenizer, make_t5_tokenizer
from tests.pipelines.vae import random_vae
from tests.pipelines.weights import spread_weights


def random_flux_transformer(
    *, guidance: bool = True, layers: int = 2, out_channels: int | None = None, seed: int = 10
) -> FluxTransformer2DModel:
    """`layers` double and as many single blocks of width 64, for 16 latent channels and texts of width 32."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        out_channels=out_channels,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    spread_weights(transformer, seed=seed)
    return transformer.eval()


def flux_scheduler(*, dynamic: bool = True) -> FlowMatchEulerDiscreteScheduler:
    """The published ones: -dev shifts by the size of the picture, -schnell does not shift."""
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=4096,
        max_shift=1.15,
        num_train_timesteps=1000,
        shift=3.0 if dynamic else 1.0,
        use_dynamic_shifting=dynamic,
    )


def make_flux(
    directory: Path,
    *,
    schnell: bool = False,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
) -> Path:
    """Writes a pipeline that draws 32×32 pixels (latents of 8×8) by default, guidance-distilled unless `schnell`."""
    tokenizer = make_clip_tokenizer(directory / "tokenizer")
    tokenizer_2 = make_t5_tokenizer(directory / "tokenizer_2")
    vae = random_vae(16, scaling_factor=0.3611, shift_factor=0.1159, quant_conv=False)
    vae.register_to_config(sample_size=36)  # 8 latents; 32 is what AutoencoderKL says when it is told nothing
    pipeline = FluxPipeline(
        scheduler=flux_scheduler(dynamic=not schnell),
        vae=vae,
        text_encoder=random_clip(tokenizer),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        text_encoder_2=random_t5(tokenizer_2),
        tokenizer_2=T5TokenizerFast.from_pretrained(tokenizer_2),
        transformer=random_flux_transformer(guidance=not schnell, layers=layers),
    )
    pipeline.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory
