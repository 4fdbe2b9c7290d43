"""SANA pipelines with random weights, in the layout of Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers."""

from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from transformers import GemmaTokenizer

from tests.pipelines.text_encoders import random_gemma2
from tests.pipelines.tokenizers import make_gemma_tokenizer
from tests.pipelines.weights import spread_weights


def random_sana_transformer(
    *, sample_size: int = 8, channels: int = 8, layers: int = 2, **config: object
) -> SanaTransformer2DModel:
    """Self-attention of 3 heads and cross-attention of 4, width 48, captions of width 32, no position embedding."""
    torch.manual_seed(0)
    options = {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 48,
        "caption_channels": 32,
        "num_layers": layers,
        "sample_size": sample_size,
    }
    transformer = SanaTransformer2DModel(**(options | config))
    spread_weights(transformer)
    return transformer.eval()


def random_dc_autoencoder(*, channels: int = 8, levels: int = 6, **config: object) -> AutoencoderDC:
    """Levels as dc-ae-f32c32-sana-1.0 has them (six: 32 pixels per latent), one block each, attention deep down."""
    torch.manual_seed(1)
    upper, lower = levels // 2, levels - levels // 2
    blocks = ("ResBlock",) * upper + ("EfficientViTBlock",) * lower
    widths = (8,) * upper + (16,) * lower
    options = {
        "latent_channels": channels,
        "attention_head_dim": 8,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": (1,) * levels,
        "decoder_layers_per_block": (1,) * levels,
        "encoder_qkv_multiscales": ((),) * levels,
        "decoder_qkv_multiscales": ((),) * upper + ((5,),) * lower,
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 0.41407,
    }
    vae = AutoencoderDC(**(options | config))
    spread_weights(vae)
    return vae.eval()


def make_sana(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    channels: int = 8,
    variant: str | None = None,
    **config: object,
) -> Path:
    """Writes a pipeline of 8×8 latents, 256×256 pixels; `config` is of the transformer."""
    tokenizer = make_gemma_tokenizer(directory / "tokenizer")
    whole = SanaPipeline(
        tokenizer=GemmaTokenizer.from_pretrained(tokenizer),
        text_encoder=random_gemma2(tokenizer),
        vae=random_dc_autoencoder(channels=channels),
        transformer=random_sana_transformer(channels=channels, **config),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    whole.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size, variant=variant)
    return directory
