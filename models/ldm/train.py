"""Train the shipped model from nothing: `python -m models.ldm.train`; `make train` calls it.

The stages, in order; each goes on from its last checkpoint, and one that is done costs nothing:

    vae        stage 1 of LDM: autoencoder, then the discriminator joins          WORK/autoencoder/
    ablation   the same last steps with the discriminator off, for the card       WORK/autoencoder-no-gan/
    decoder    the decoder goes on with noise in its latents                      WORK/decoder/
    dit        stage 2: latents cached, DiT trained on them                       WORK/latents.pt, WORK/transformer/
    export     the DiTPipeline directory in half precision                        OUTPUT

Several processes: `accelerate launch --num_processes N -m models.ldm.train`. On CPUs add `--cpu`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from models.ldm.config import CHECKPOINT, AutoencoderConfig, DataConfig, DecoderConfig, TransformerConfig
from models.ldm.directory import pipeline_of, write_directory
from models.ldm.journal import load_state
from models.ldm.latents import CachedLatents, cache_latents
from models.ldm.pictures import Split, load_split
from models.ldm.train_autoencoder import train_autoencoder
from models.ldm.train_decoder import train_decoder
from models.ldm.train_transformer import train_transformer

STAGES = ("vae", "ablation", "decoder", "dit", "export")


@dataclass(frozen=True)
class Plan:
    """One run: what to train on, how, and where to leave it."""

    stages: tuple[str, ...] = STAGES
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    work: Path = Path("build/train")
    output: Path = CHECKPOINT
    precision: str = "bf16"


def train(plan: Plan) -> None:
    """Run the stages of the plan; a stage first finishes those that it builds on."""
    accelerator = Accelerator(mixed_precision=plan.precision)
    split = load_split(plan.data)
    vae = train_autoencoder(plan.autoencoder, split, plan.work / "autoencoder", accelerator)
    if "ablation" in plan.stages:
        train_without_gan(plan, split, accelerator)
    if not {"decoder", "dit", "export"} & set(plan.stages):
        return
    cached = latents_of(plan, split, vae, accelerator)
    if {"decoder", "export"} & set(plan.stages):
        robust_decoder(plan, split, vae, accelerator)
    if not {"dit", "export"} & set(plan.stages):
        return
    classes = split.train.classes
    transformer = train_transformer(plan.transformer, cached, classes, vae, plan.work / "transformer", accelerator)
    if "export" in plan.stages and accelerator.is_main_process:
        size = write_directory(pipeline_of(transformer, vae, plan.transformer, classes), classes, plan.output)
        print(f"{plan.output}: {size / 1e6:.2f} MB")


def train_without_gan(plan: Plan, split: Split, accelerator: Accelerator) -> AutoencoderKL:
    """Stage 1 again from where the discriminator joined, without it: what the card sets beside the shipped one."""
    folder = plan.work / "autoencoder-no-gan"
    with accelerator.main_process_first():
        if not (folder / "state.pt").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.work / "autoencoder" / "fork.pt", folder / "state.pt")
    return train_autoencoder(replace(plan.autoencoder, adversarial=False), split, folder, accelerator)


def latents_of(plan: Plan, split: Split, vae: AutoencoderKL, accelerator: Accelerator) -> CachedLatents:
    """The cached latents of the training split; their measured scale factor goes into the config of `vae`."""
    config = plan.transformer
    path = plan.work / "latents.pt"
    with accelerator.main_process_first():
        cached = cache_latents(vae, split.train, config.cached_versions, config.shift, config.seed, path)
    vae.register_to_config(scaling_factor=cached.scaling_factor)
    return cached


def robust_decoder(plan: Plan, split: Split, vae: AutoencoderKL, accelerator: Accelerator) -> None:
    """Train the decoder of `vae` further, in place; the discriminator goes on from where stage 1 left it."""
    state = load_state(plan.work / "autoencoder" / "state.pt")
    assert state is not None
    judge = cast(dict[str, torch.Tensor], state["discriminator"])
    train_decoder(plan.decoder, plan.autoencoder, vae, split.train, judge, plan.work / "decoder", accelerator)


def plan_from_arguments(arguments: list[str]) -> Plan:
    """Read the command line; the defaults are those of the shipped checkpoint."""
    default = Plan()
    parser = argparse.ArgumentParser(prog="python -m models.ldm.train", description="Train the shipped model.")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="one stage, with what it builds on")
    parser.add_argument(
        "--data", type=Path, help="a folder with a sub-folder of pictures for each class (default: emoji)"
    )
    parser.add_argument("--size", type=int, default=default.data.size, help="side of the pictures in pixels")
    parser.add_argument("--work", type=Path, default=default.work, help="checkpoints, metrics and grids")
    parser.add_argument("--output", type=Path, default=default.output, help="the DiTPipeline directory")
    parser.add_argument("--vae-steps", type=int, default=default.autoencoder.steps)
    parser.add_argument("--gan-start", type=int, default=default.autoencoder.adversarial_start)
    parser.add_argument("--vae-batch", type=int, default=default.autoencoder.batch, help="per process")
    parser.add_argument("--decoder-steps", type=int, default=default.decoder.steps)
    parser.add_argument("--dit-steps", type=int, default=default.transformer.steps)
    parser.add_argument("--dit-batch", type=int, default=default.transformer.batch, help="per process")
    parser.add_argument("--lpips-vgg16", type=Path, help="torchvision's vgg16 weights; with --lpips-linear")
    parser.add_argument("--lpips-linear", type=Path, help="vgg.pth of lpips v0.1; with --lpips-vgg16")
    parser.add_argument(
        "--compile", action="store_true", help="compile the DiT with torch.compile: faster, needs a C++ compiler"
    )
    parser.add_argument("--precision", choices=("bf16", "no"), default=default.precision)
    given = parser.parse_args(arguments)
    if given.size % 8:
        raise ValueError(f"--size {given.size}: give a multiple of 8")
    if given.data is not None and given.output == CHECKPOINT:
        raise ValueError("--data without --output would overwrite the shipped emoji model: give --output DIR")
    return Plan(
        stages=STAGES if given.stage == "all" else (given.stage,),
        data=DataConfig(given.data, given.size),
        autoencoder=replace(
            default.autoencoder,
            steps=given.vae_steps,
            adversarial_start=given.gan_start,
            batch=given.vae_batch,
            lpips_vgg16=given.lpips_vgg16,
            lpips_linear=given.lpips_linear,
        ),
        decoder=replace(default.decoder, steps=given.decoder_steps, batch=given.vae_batch),
        transformer=replace(default.transformer, steps=given.dit_steps, batch=given.dit_batch, compile=given.compile),
        work=given.work,
        output=given.output,
        precision=given.precision,
    )


def main() -> int:
    """Exit 1 with one line where the user's data or options are wrong."""
    try:
        train(plan_from_arguments(sys.argv[1:]))
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
