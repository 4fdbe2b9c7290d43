"""Train `emoji-flux` from nothing: `python -m models.ldm.text_to_image.train`.

The stages, in order; each goes on from its last checkpoint, and one that is done costs nothing:

    flow      flow matching, encoders and transformer together        WORK/flow/
    distil    guidance goes into the transformer                      WORK/distil/
    export    the FluxPipeline directory in half precision            OUTPUT

The autoencoder is that of emoji-dit, as it is shipped.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional
from transformers import CLIPTokenizer, T5Tokenizer

from models.ldm.augment import generator_at
from models.ldm.journal import save_grid
from models.ldm.text_to_image.attention import RepeatedTokenAttention
from models.ldm.text_to_image.config import (
    AUTOENCODER,
    CHECKPOINT,
    DISTILLATION,
    FLOW,
    DataConfig,
    GuidanceConfig,
    LoopConfig,
    NetworkConfig,
)
from models.ldm.text_to_image.dataset import EmojiLatents, drawn_emoji, emoji_latents
from models.ldm.text_to_image.directory import drawn, pipeline_of, write_directory
from models.ldm.text_to_image.flow import batch_at, text_states, velocity, words_from_captions
from models.ldm.text_to_image.loop import run
from models.ldm.text_to_image.networks import Networks, flux_autoencoder, networks_from_config
from models.ldm.text_to_image.vocabularies import kept_tokenizers

# What the grids of a training run show.
SHOWN = (
    *("red heart", "blue car", "grinning face", "cat", "green apple", "pizza", "flag: Japan", "rocket"),
    *("blue heart", "red car", "crying face", "dog", "banana", "birthday cake", "flag: Germany", "airplane"),
    *("green heart", "bicycle", "smiling face with sunglasses", "owl", "strawberry", "sunflower", "thumbs up", "house"),
    *("purple cat", "blue rose", "woman astronaut", "yellow fish", "red umbrella", "star", "three o’clock", "guitar"),
)


@dataclass(frozen=True)
class Plan:
    """One run: what to train, how, and where to leave it."""

    stages: tuple[str, ...] = ("flow", "distil", "export")
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    flow: LoopConfig = FLOW
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    distillation: LoopConfig = DISTILLATION
    work: Path = Path("build/train-flux")
    output: Path = CHECKPOINT
    compile: bool = False
    bfloat16: bool = True
    shown: tuple[str, ...] = SHOWN


@dataclass(frozen=True)
class Bench:
    """What every stage works with."""

    plan: Plan
    data: EmojiLatents
    vae: AutoencoderKL
    tokenizers: tuple[CLIPTokenizer, T5Tokenizer]


def train(plan: Plan) -> None:
    """Run the stages of the plan; a stage first finishes those that it builds on."""
    vae = flux_autoencoder(AutoencoderKL.from_pretrained(str(AUTOENCODER)))
    emoji = drawn_emoji(vae.config.sample_size)
    data = emoji_latents(vae, emoji, plan.data.class_balance, plan.work / "latents.pt")
    tokenizers = kept_tokenizers(plan.network, data.captions, plan.work)
    bench = Bench(plan, data, vae, tokenizers)
    networks = train_flow(bench)
    if {"distil", "export"} & set(plan.stages):
        networks = distil(bench, networks)
    if "export" in plan.stages:
        size = write_directory(pipeline_of(networks, vae, tokenizers), plan.output)
        print(f"{plan.output}: {size / 1e6:.2f} MB")


def new_networks(bench: Bench) -> Networks:
    """Networks as they begin, attention replaced by its equal that is quick to train."""
    torch.manual_seed(bench.plan.flow.seed)
    networks = networks_from_config(bench.plan.network, bench.vae.config.latent_channels, *bench.tokenizers)
    networks.transformer.set_attn_processor(RepeatedTokenAttention())
    for layer in (networks.transformer.x_embedder, networks.transformer.context_embedder):
        # Under autocast the residual stream, and with it the time that the network is told, would be bfloat16.
        layer.register_forward_hook(lambda _module, _inputs, output: output.float())
    return networks.train(True)


def train_flow(bench: Bench) -> Networks:
    """Stage A: encoders and transformer together, guidance input at 1. The networks have their averaged weights."""
    plan, networks = bench.plan, new_networks(bench)
    transformer = torch.compile(networks.transformer) if plan.compile else networks.transformer

    def loss_at(step: int) -> torch.Tensor:
        batch = batch_at(bench.data, bench.tokenizers, plan.data, plan.flow.batch, generator_at(plan.flow.seed, step))
        states, pooled = text_states(networks, batch.words)
        predicted = velocity(transformer, batch, states, pooled, torch.ones(len(batch.times)))
        return functional.mse_loss(predicted, batch.target)

    on_grid = partial(save_examples, bench, networks, 3.5)
    run(plan.flow, networks.modules(), loss_at, plan.work / "flow", on_grid, plan.bfloat16)
    return networks


def distil(bench: Bench, teacher: Networks) -> Networks:
    """Stage B: the transformer learns what the teacher says with classifier-free guidance of the scale it is told."""
    plan = bench.plan
    student = copy.deepcopy(teacher.transformer)
    networks = Networks(student, teacher.clip, teacher.t5)
    for module in teacher.modules().values():
        module.requires_grad_(False)
    quick_student, quick_teacher = student, teacher.transformer
    if plan.compile:
        quick_student, quick_teacher = torch.compile(student), torch.compile(teacher.transformer)

    def loss_at(step: int) -> torch.Tensor:
        generator = generator_at(plan.distillation.seed, step)
        batch = batch_at(bench.data, bench.tokenizers, plan.data, plan.distillation.batch, generator)
        scale = torch.empty(len(batch.times)).uniform_(plan.guidance.least, plan.guidance.most, generator=generator)
        ones = torch.ones_like(scale)
        with torch.no_grad():
            states, pooled = text_states(teacher, batch.words)
            empty_states, empty_pooled = empty_text(bench, teacher)
            shape = len(scale), -1, -1
            conditional = velocity(quick_teacher, batch, states, pooled, ones)
            unconditional = velocity(
                quick_teacher, batch, empty_states.expand(shape), empty_pooled.expand(shape[:2]), ones
            )
            target = unconditional + scale[:, None, None] * (conditional - unconditional)
        return functional.mse_loss(velocity(quick_student, batch, states, pooled, scale), target)

    on_grid = partial(save_examples, bench, networks, 1.0)
    run(plan.distillation, {"transformer": student}, loss_at, plan.work / "distil", on_grid, plan.bfloat16)
    return networks


def empty_text(bench: Bench, networks: Networks) -> tuple[torch.Tensor, torch.Tensor]:
    """The states of the empty prompt, (1, L, width) and (1, width)."""
    words = words_from_captions([""], bench.tokenizers, bench.plan.data.text_tokens, 0, random.Random(0))
    return text_states(networks, words)


def save_examples(bench: Bench, networks: Networks, true_guidance: float, path: Path) -> None:
    """The prompts of SHOWN, guided by the empty prompt as long as the network has not learned guidance."""
    guidance = 1.0 if true_guidance > 1.0 else 3.5
    networks.train(False)
    pipe = pipeline_of(networks, bench.vae, bench.tokenizers)
    pictures = drawn(
        pipe, list(bench.plan.shown), 0, 20, guidance, true_guidance, 64, size=bench.vae.config.sample_size
    )
    networks.train(True)
    save_grid(pictures, path, columns=8)


def plan_from_arguments(arguments: list[str]) -> Plan:
    """Read the command line; the defaults are those of the shipped checkpoint."""
    default = Plan()
    parser = argparse.ArgumentParser(prog="python -m models.ldm.text_to_image.train", description="Train emoji-flux.")
    parser.add_argument("--stage", choices=("all", *default.stages), default="all", help="one, with what it builds on")
    parser.add_argument("--work", type=Path, default=default.work, help="checkpoints, metrics and grids")
    parser.add_argument("--output", type=Path, default=default.output, help="the FluxPipeline directory")
    parser.add_argument("--flow-steps", type=int, default=default.flow.steps)
    parser.add_argument("--flow-decay-steps", type=int, default=default.flow.decay_steps)
    parser.add_argument("--distil-steps", type=int, default=default.distillation.steps)
    parser.add_argument("--distil-decay-steps", type=int, default=default.distillation.decay_steps)
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    return Plan(
        stages=default.stages if given.stage == "all" else (given.stage,),
        flow=replace(default.flow, steps=given.flow_steps, decay_steps=given.flow_decay_steps),
        distillation=replace(default.distillation, steps=given.distil_steps, decay_steps=given.distil_decay_steps),
        work=given.work,
        output=given.output,
        compile=given.compile,
        bfloat16=given.precision == "bf16",
    )


def main() -> int:
    """Exit 1 with one line where something that is needed is missing."""
    try:
        train(plan_from_arguments(sys.argv[1:]))
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
