"""PixArt pipelines with random weights, in the layout of PixArt-XL-2-1024-MS and PixArt-Sigma-XL-2-1024-MS."""

import json
from pathlib import Path

import safetensors.torch
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Tokenizer

from tests.pipelines.text_encoders import random_t5
from tests.pipelines.tokenizers import make_t5_tokenizer
from tests.pipelines.vae import random_vae
from tests.pipelines.weights import spread_weights

UNUSED = "caption_projection.y_embedding"  # in the published α checkpoints, and read by no pipeline
CLASSES = {"PixArtAlphaPipeline": PixArtAlphaPipeline, "PixArtSigmaPipeline": PixArtSigmaPipeline}


def random_pixart_transformer(*, sample_size: int = 8, layers: int = 2, **config: object) -> PixArtTransformer2DModel:
    """4 latent channels with a learned variance, width 48 (a multiple of 3 and 4), captions of width 32."""
    torch.manual_seed(0)
    options = {
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "cross_attention_dim": 48,
        "caption_channels": 32,
        "num_layers": layers,
        "sample_size": sample_size,
    }
    transformer = PixArtTransformer2DModel(**(options | config))
    spread_weights(transformer)
    return transformer.eval()


def make_pixart(
    directory: Path,
    pipeline: str = "PixArtSigmaPipeline",
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    as_published: bool = False,
    **config: object,
) -> Path:
    """Writes a pipeline of 8×8 latents, 32×32 pixels, for prompts of 120 (α) or 300 (Σ) tokens.

    `config` is of the transformer: α's 1024 px models have sample_size=128, which makes them know the pixel size.
    `as_published` gives the transformer the legacy class name, the configuration and the unused tensor of the
    published α checkpoints.
    """
    tokenizer = make_t5_tokenizer(directory / "tokenizer")
    whole = CLASSES[pipeline](
        tokenizer=T5Tokenizer.from_pretrained(tokenizer),
        text_encoder=random_t5(tokenizer),
        vae=random_vae(scaling_factor=0.13025 if "Sigma" in pipeline else 0.18215),
        transformer=random_pixart_transformer(**config),
        scheduler=DPMSolverMultistepScheduler(),  # as diffusers' conversion scripts write it
    )
    whole.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    if as_published:
        _name_as_published(directory)
    return directory


def _name_as_published(directory: Path) -> None:
    index = json.loads((directory / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "Transformer2DModel"]
    (directory / "model_index.json").write_text(json.dumps(index, indent=2))
    path = directory / "transformer" / "config.json"
    config = json.loads(path.read_text())
    for key in ("interpolation_scale", "use_additional_conditions"):
        config.pop(key)
    config |= {"_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None}
    path.write_text(json.dumps(config, indent=2))
    index_file = directory / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    weights = directory / "transformer" / "diffusion_pytorch_model.safetensors"
    if index_file.is_file():
        shards = json.loads(index_file.read_text())
        weights = weights.with_name(min(shards["weight_map"].values()))
        shards["weight_map"][UNUSED] = weights.name
        index_file.write_text(json.dumps(shards, indent=2))
    tensors = safetensors.torch.load_file(weights)
    tensors[UNUSED] = torch.zeros(120, 32)
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
