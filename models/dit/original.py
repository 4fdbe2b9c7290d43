"""The DiT repository's own checkpoints (DiT-XL-2-256x256.pt) as a DiTPipeline directory.

    python -m models.dit.original CHECKPOINT.pt --vae DIR --output DIR

The file is a pickle of tensors; it is read with `weights_only`, which runs no code from it. The architecture is
inferred from the shapes. diffusers' DiTTransformer2DModel computes the same function except for the frequencies of
the timestep embedding: it has exp(-log(10000)·i/127) where the original has ·i/128. That number is in no config of
diffusers, so the directory notes the original's in transformer/config.json under FREQUENCY_SHIFT, which diffusers
passes over in silence and `restore_frequencies` obeys.
"""

import argparse
import json
import math
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor

from models.components import load_component
from models.latent_diffusion import SourceError

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by width: S, B, L, XL (arXiv 2212.09748, table 1)
NUM_CLASSES = 1000  # DiTPipeline writes 1000 as the label of no class
FREQUENCY_SHIFT = "_downscale_freq_shift"  # diffusers ignores the keys of a config that begin with _
_POSITION_BOUND = 1e-4  # stored positions are float32 of what diffusers computes anew
_RENAMED = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
_EMBEDDERS = {  # one in the original, a copy in every block of diffusers
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_IN_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` in float32; of a training checkpoint those of its `ema`. Raises SourceError."""
    try:
        # train.py stores its command line beside the weights; a Namespace is attributes and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"{path}: no checkpoint that can be read without running its code: {reason}") from error
    state = content.get("ema", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SourceError(
            f"{path}: holds no state dict; a checkpoint of the DiT repository is one, or has one as 'ema'"
        )
    return {str(name): value.float() for name, value in state.items()}


def transformer_from_original(state: Mapping[str, Tensor], heads: int | None = None) -> DiTTransformer2DModel:
    """A transformer of the shapes and weights of `state`; `heads` only for widths other than S, B, L and XL."""
    transformer = DiTTransformer2DModel(**_config(state, heads))
    converted = _converted(state, len(transformer.transformer_blocks))
    wanted = set(transformer.state_dict())
    if missing := sorted(wanted - set(converted)):
        raise SourceError(f"the checkpoint has no weights for {missing[0]} (and {len(missing) - 1} more missing)")
    if unknown := sorted(set(converted) - wanted):
        raise SourceError(f"{unknown[0]} (and {len(unknown) - 1} more) is not part of a DiT; is this another model?")
    try:
        transformer.load_state_dict(converted)
    except RuntimeError as error:
        raise SourceError(f"the checkpoint's shapes are not a DiT's: {str(error).splitlines()[-1].strip()}") from error
    _check_positions(state["pos_embed"], transformer)
    _set_shift(transformer, 0)
    return transformer.eval()


def restore_frequencies(transformer: DiTTransformer2DModel, source: Path) -> None:
    """Gives a transformer that was loaded from `source` the timestep frequencies that it was trained with.

    Does nothing to a directory without the note that this module writes.
    """
    config = json.loads((source / "transformer" / "config.json").read_text(encoding="utf-8"))
    if FREQUENCY_SHIFT in config:
        _set_shift(transformer, config[FREQUENCY_SHIFT])


def write_pipeline(transformer: DiTTransformer2DModel, vae: AutoencoderKL, output: Path) -> None:
    """Writes a DiTPipeline directory, with the scheduler of facebook/DiT-XL-2-256; labels are numbers."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SourceError(f"--output {output}: is there already; name a directory that is new or empty")
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    DiTPipeline(transformer, vae, scheduler).save_pretrained(output)
    path = output / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {FREQUENCY_SHIFT: 0}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Converts; returns 0, or 1 for what the user gave (argparse exits with 2 by itself)."""
    parser = argparse.ArgumentParser(
        prog="python -m models.dit.original",
        description="Writes a DiTPipeline directory from a .pt of the DiT repository.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pt", type=Path)
    parser.add_argument(
        "--vae", metavar="DIR", type=Path, required=True, help="an AutoencoderKL, or a pipeline with one"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the directory that is written")
    parser.add_argument("--size", metavar="PX", type=int, help="the image size that is expected; to be sure (256, 512)")
    parser.add_argument("--heads", metavar="N", type=int, help="attention heads, for a width other than S, B, L, XL")
    arguments = parser.parse_args(argv)
    print(f"warning: {arguments.checkpoint} is a pickle; read without running code (weights_only)", file=sys.stderr)
    try:
        transformer = transformer_from_original(read_checkpoint(arguments.checkpoint), arguments.heads)
        directory = arguments.vae.resolve()
        nested = (directory / "vae").is_dir()
        vae = load_component(
            AutoencoderKL, directory if nested else directory.parent, "vae" if nested else directory.name
        )
        pixels = transformer.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
        if arguments.size is not None and arguments.size != pixels:
            raise SourceError(f"--size {arguments.size}: this checkpoint draws {pixels} pixels with this VAE")
        write_pipeline(transformer, vae, arguments.output)
    except (SourceError, OSError) as error:
        print(f"models.dit.original: error: {error}", file=sys.stderr)
        return 1
    blocks, width = len(transformer.transformer_blocks), transformer.inner_dim
    print(f"{arguments.output}: DiTPipeline, {blocks} blocks of {width}, {pixels} pixels")
    return 0


def _config(state: Mapping[str, Tensor], heads: int | None) -> dict[str, int | float]:
    """The constructor's arguments, from the shapes of the state dict."""
    needed = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    if absent := [name for name in needed if name not in state]:
        raise SourceError(f"the checkpoint has no {absent[0]}; one of the DiT repository has {', '.join(needed)}")
    width, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = heads or HEADS.get(width)
    if heads is None or width % heads:
        known = ", ".join(str(known) for known in HEADS)
        raise SourceError(f"a DiT of width {width} (known: {known}): say --heads N, where N divides the width")
    rows = len(state["y_embedder.embedding_table.weight"])
    if rows != NUM_CLASSES + 1:
        raise SourceError(
            f"the label table has {rows} rows; DiTPipeline takes {NUM_CLASSES} classes and one for no class"
        )
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": len(state["final_layer.linear.weight"]) // patch**2,
        "num_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "sample_size": math.isqrt(state["pos_embed"].shape[1]) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": NUM_CLASSES,
        "norm_eps": 1e-6,  # facebook/DiT-XL-2-256 in diffusers has 1e-5, the original 1e-6
    }


def _converted(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The state dict under diffusers' names; a name that is not known is kept, to be refused by the caller."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
        if name == "pos_embed":
            continue  # computed, not stored, in diffusers
        if module in _EMBEDDERS:
            target = _EMBEDDERS[module]
            result |= {f"transformer_blocks.{i}.norm1.emb.{target}.{kind}": value for i in range(depth)}
        elif block and block[2] == "attn.qkv":
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[f"transformer_blocks.{block[1]}.attn1.to_{letter}.{kind}"] = part
        elif block:
            result[f"transformer_blocks.{block[1]}.{_IN_BLOCK.get(block[2], block[2])}.{kind}"] = value
        else:
            result[f"{_RENAMED.get(module, module)}.{kind}"] = value
    return result


def _check_positions(stored: Tensor, transformer: DiTTransformer2DModel) -> None:
    computed = transformer.pos_embed.pos_embed
    if stored.shape != computed.shape or (stored - computed).abs().max() > _POSITION_BOUND:
        raise SourceError(
            "pos_embed is not the sine and cosine table of its grid; diffusers' DiT has no other positions"
        )


def _set_shift(transformer: DiTTransformer2DModel, shift: float) -> None:
    for module in transformer.modules():
        if isinstance(module, Timesteps):
            module.downscale_freq_shift = shift


if __name__ == "__main__":
    sys.exit(main())
