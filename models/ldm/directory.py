"""The trained result as a plain DiTPipeline directory, and pictures drawn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from models.ldm.config import TransformerConfig
from models.ldm.transformer import solver

NUM_STEPS = 20
GUIDANCE = 4.0  # DiTPipeline's own default


def pipeline_of(
    transformer: DiTTransformer2DModel, vae: AutoencoderKL, config: TransformerConfig, classes: tuple[str, ...]
) -> DiTPipeline:
    """The pipeline as `DiTPipeline.from_pretrained` would make it."""
    # DiTPipeline splits labels at commas into synonyms; a comma inside a name would tear it apart.
    names = {index: name.replace(",", " ") for index, name in enumerate(classes)}
    return DiTPipeline(transformer=transformer, vae=vae, scheduler=solver(config), id2label=names)


def write_directory(pipe: DiTPipeline, classes: tuple[str, ...], folder: Path) -> int:
    """Save `pipe` in half precision and return the size of the folder in bytes. Its networks become half precision."""
    pipe.to(torch.float16)
    pipe.save_pretrained(folder)
    # save_pretrained keeps components only: without the names in model_index.json `pipe.labels` would be empty.
    index = folder / "model_index.json"
    entries = json.loads(index.read_text(encoding="utf-8"))
    entries["id2label"] = {str(number): name.replace(",", " ") for number, name in enumerate(classes)}
    index.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def drawn(
    pipe: DiTPipeline,
    labels: list[int],
    seed: int,
    num_steps: int = NUM_STEPS,
    guidance: float = GUIDANCE,
    batch: int = 64,
) -> torch.Tensor:
    """One picture a label, (N, 3, S, S) float32 in [-1, 1]; picture i starts from the noise of seed + i."""
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(labels), batch):
        chunk = labels[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(seed + start + index) for index in range(len(chunk))]
        images = pipe(chunk, guidance, generators, num_steps, output_type="pt").images
        parts.append(cast(torch.Tensor, images).float().cpu().mul(2.0).sub(1.0))
    return torch.cat(parts)
