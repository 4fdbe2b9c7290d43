"""The trained result as a plain FluxPipeline directory, and pictures drawn from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, FluxPipeline
from transformers import CLIPTokenizer, T5Tokenizer

from models.ldm.text_to_image.config import AUTOENCODER, GUIDANCE, NUM_STEPS, SEQUENCE_LENGTH
from models.ldm.text_to_image.networks import Networks, scheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"


def pipeline_of(networks: Networks, vae: AutoencoderKL, tokenizers: tuple[CLIPTokenizer, T5Tokenizer]) -> FluxPipeline:
    """The pipeline as `FluxPipeline.from_pretrained` would make it."""
    return FluxPipeline(
        scheduler=scheduler(),
        vae=vae,
        text_encoder=networks.clip,
        tokenizer=tokenizers[0],
        text_encoder_2=networks.t5,
        tokenizer_2=tokenizers[1],
        transformer=networks.transformer,
    )


def write_directory(pipe: FluxPipeline, folder: Path) -> int:
    """Save `pipe` in half precision, its autoencoder's weights as a link to emoji-dit's; return its own bytes.

    The networks of `pipe` become half precision.
    """
    pipe.to(torch.float16)
    for tokenizer in (pipe.tokenizer, pipe.tokenizer_2):
        # A call leaves its padding and its limit in the tokenizer, and its file would apply them to every reader's.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    pipe.save_pretrained(folder)
    for vocabulary in folder.glob("*/tokenizer.json"):  # as it is written, half of it is indentation
        entries = json.loads(vocabulary.read_text(encoding="utf-8"))
        vocabulary.write_text(json.dumps(entries, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    for config in folder.glob("*/config.json"):
        entries = json.loads(config.read_text(encoding="utf-8"))
        entries.pop("_name_or_path", None)  # where this machine had it
        if config.parent.name in ("text_encoder", "text_encoder_2"):
            # transformers 5 loads in the type that the config names, diffusers 0.42 in float32: unlike types do not add
            # up.
            entries["dtype"] = "float32"
        config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    weights = folder / "vae" / WEIGHTS
    if folder.parent.resolve() == AUTOENCODER.parents[1].resolve():
        weights.unlink()
        weights.symlink_to(os.path.relpath(AUTOENCODER / WEIGHTS, weights.parent))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@torch.no_grad()
def drawn(
    pipe: FluxPipeline,
    prompts: list[str],
    seed: int,
    num_steps: int = NUM_STEPS,
    guidance: float = GUIDANCE,
    true_guidance: float = 1.0,
    sequence_length: int = SEQUENCE_LENGTH,
    size: int = 64,
    batch: int = 32,
) -> torch.Tensor:
    """One picture a prompt, (N, 3, S, S) float32 in [-1, 1]; picture i starts from the noise of seed + i.

    `true_guidance` above 1 adds classifier-free guidance against the empty prompt, as long as the model knows no other.
    """
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        images = pipe(
            chunk,
            negative_prompt=[""] * len(chunk) if true_guidance > 1.0 else None,
            true_cfg_scale=true_guidance,
            height=size,
            width=size,
            num_inference_steps=num_steps,
            guidance_scale=guidance,
            max_sequence_length=sequence_length,
            generator=[torch.Generator("cpu").manual_seed(seed + start + index) for index in range(len(chunk))],
            output_type="pt",
        ).images
        parts.append(cast(torch.Tensor, images).float().cpu().mul(2.0).sub(1.0))
    return torch.cat(parts)
