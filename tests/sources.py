"""Pipelines with random weights in the real layout on disk, made for the tests: no number in them was trained."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn


def write_random_dit(
    directory: Path, *, learned_sigma: bool = True, width: int = 32, layers: int = 2, prediction: str = "epsilon"
) -> Path:
    """A small DiTPipeline: 8×8 latents of 4 channels, 32×32 pixels, three named labels."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=width // 16,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8 if learned_sigma else 4,
        num_layers=layers,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        scaling_factor=0.6,
    )
    spread_weights(transformer)
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, prediction_type=prediction)
    DiTPipeline(transformer, vae, scheduler).save_pretrained(directory)
    # save_pretrained does not write the names; the published checkpoints have them in model_index.json.
    index = json.loads((directory / "model_index.json").read_text())
    index["id2label"] = {"0": "animal-mammal", "1": "food-fruit", "7": "sky & weather, sky"}
    (directory / "model_index.json").write_text(json.dumps(index, indent=2))
    return directory


def spread_weights(module: nn.Module) -> None:
    """Makes every input matter: default initialisation leaves a label's effect below what a test can see."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm1.linear" in name or "emb" in name or "proj_out" in name:
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
