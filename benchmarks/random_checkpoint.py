"""Writes a diffusers pipeline directory of the real shapes with random weights: no download, and no model in memory.

    python -m benchmarks.random_checkpoint flux-dev --output DIR [--dtype bf16] [--shard-gb 10] [--seed 0]

Models are those of benchmarks/published_shapes.py. Names, shapes and configurations come from the real classes on the
meta device; weights are streamed (benchmarks/random_weights.py: one pool of normal numbers, an offset and a scale for
each tensor), so that the peak stays below 1 GB whatever the size. Shards and their index are split and named as
diffusers and transformers do it, by default at the sizes of the published files: 10 GB and 5 GB.
Tokenizers are real ones of a few hundred tokens (tests/pipelines/tokenizers.py), whose ids the encoders all know.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, PixArtSigmaPipeline, SD3Transformer2DModel
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedModel, T5EncoderModel

from benchmarks.published_shapes import Shapes, shapes_of
from benchmarks.random_weights import Drawn, NormalPool, draws, write_sharded
from tests.pipelines.tokenizers import make_clip_tokenizer, make_t5_tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DIFFUSERS_SHARD_GB, TRANSFORMERS_SHARD_GB = 10.0, 5.0  # the defaults under which the published files were written


def write_checkpoint(
    directory: Path, shapes: Shapes, dtype: str | None = None, shard_gb: float | None = None, seed: int = 0
) -> int:
    """Writes `shapes` to a new directory in its own type or `dtype`; returns the number of parameters."""
    directory.mkdir(parents=True)
    pool, parameters = NormalPool(seed), 0
    stored = DTYPES[dtype or shapes.dtype]
    for folder, kind in shapes.tokenizers.items():
        _write_tokenizer(directory / folder, kind)
    _write_index(directory, shapes)
    shapes.scheduler.save_pretrained(directory / "scheduler")
    for folder, module in shapes.modules.items():
        tensors = {_published(module, name): drawn for name, drawn in drawn_tensors(module).items()}
        parameters += sum(math.prod(drawn.shape) for drawn in tensors.values())
        if isinstance(module, PreTrainedModel):
            module.config.architectures = [type(module).__name__]
            module.config.dtype = stored
            module.config.save_pretrained(directory / folder)
            stem, usual = "model", TRANSFORMERS_SHARD_GB
        else:
            module.save_config(directory / folder)
            stem, usual = "diffusion_pytorch_model", DIFFUSERS_SHARD_GB
        shard_bytes = int((shard_gb or usual) * 1e9)
        write_sharded(directory / folder, stem, tensors, stored, shard_bytes, pool)
    return parameters


def drawn_tensors(module: nn.Module) -> dict[str, Drawn]:
    """What each tensor of a component is drawn from."""
    # Queries and keys a little above one: random attention would else be a mean over all tokens, whatever the text.
    gains = {f".norm_{of}": 1.5 for of in ("q.", "k.", "added_q.", "added_k.")}
    if isinstance(module, T5EncoderModel):
        gains = {"SelfAttention.q.": module.config.d_kv**-0.5}  # T5 does not scale its scores: this is in its weights
    elif isinstance(module, AutoencoderKL):
        gains = {"decoder.conv_out.weight": 2.0}  # pictures of full contrast
    if not isinstance(module, SD3Transformer2DModel):
        return draws(module, gains)
    # SD3 stores its positions, which are a buffer, and the only one that a published component has.
    positions = module.pos_embed.pos_embed
    del module.pos_embed.pos_embed
    config = module.config
    rows = _sd3_positions(config.pos_embed_max_size, positions.shape[-1], config.sample_size // config.patch_size)
    return {"pos_embed.pos_embed": Drawn(tuple(positions.shape), given=rows), **draws(module, gains)}


def _sd3_positions(side: int, width: int, base: int) -> Iterator[Tensor]:
    """diffusers' get_2d_sincos_pos_embed row by row: [side, width] for each of `side` rows; it is separable."""
    places = torch.arange(side, dtype=torch.float32) / (side / base)
    along = get_1d_sincos_pos_embed_from_grid(width // 2, places, output_type="pt").float()
    for row in along:
        yield torch.cat([along, row.expand(side, -1)], dim=1)


def _published(module: nn.Module, name: str) -> str:
    """transformers 5 has taken the level `text_model` out of CLIPTextModel; the published files have it."""
    return f"text_model.{name}" if isinstance(module, CLIPTextModel) and not name.startswith("text_model.") else name


def _write_tokenizer(directory: Path, kind: str) -> None:
    if kind == "t5":
        make_t5_tokenizer(directory)
    else:
        make_clip_tokenizer(directory, pad="!" if kind == "clip!" else "<|endoftext|>")


def _write_index(directory: Path, shapes: Shapes) -> None:
    """model_index.json, as the pipeline itself writes it."""
    index: dict[str, Any] = {"_class_name": shapes.pipeline.__name__, "_diffusers_version": "0.32.0"}
    parts: Mapping[str, object] = {"scheduler": shapes.scheduler, **shapes.modules}
    for name, part in parts.items():
        library = "diffusers" if name == "scheduler" or isinstance(part, ModelMixin) else "transformers"
        index[name] = [library, type(part).__name__]
    # transformers 5 calls the two T5 tokenizers the same; published files have the names of before.
    t5 = "T5Tokenizer" if shapes.pipeline is PixArtSigmaPipeline else "T5TokenizerFast"
    for name, kind in shapes.tokenizers.items():
        index[name] = ["transformers", t5 if kind == "t5" else "CLIPTokenizer"]
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one checkpoint, and prints its number of parameters and bytes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_checkpoint")
    parser.add_argument("model", metavar="MODEL", help="flux-dev, sd3.5-large, t5-xxl, dit-xl-2, flux-N, sd3-N, …")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a directory that is not there yet")
    parser.add_argument("--dtype", choices=DTYPES, help="how weights are stored (the model's own: bf16; DiT: fp32)")
    parser.add_argument("--shard-gb", metavar="GB", type=float, help="largest shard (10 for diffusers, 5 for text)")
    parser.add_argument("--seed", metavar="N", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.output.exists():
        sys.exit(f"{given.output}: exists; give --output a new path")
    try:
        shapes = shapes_of(given.model)
    except ValueError as error:
        sys.exit(str(error))
    parameters = write_checkpoint(given.output, shapes, given.dtype, given.shard_gb, given.seed)
    num_bytes = sum(file.stat().st_size for file in given.output.rglob("*") if file.is_file())
    print(json.dumps({"model": given.model, "parameters": parameters, "bytes": num_bytes}))


if __name__ == "__main__":
    main()
