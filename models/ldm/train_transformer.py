"""Stage 2 of LDM: a DiT learns to denoise the cached latents, with class labels that are dropped for guidance.

Contract: `train_transformer` runs to `config.steps`, or goes on from the folder's last checkpoint, and returns the
network with its averaged (EMA) weights. It sees latents and labels only, never a picture.

B batch · C latent channels · s latent side
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from models.ldm.augment import generator_at
from models.ldm.config import NULL_CLASS, TransformerConfig, write_config
from models.ldm.directory import drawn, pipeline_of
from models.ldm.journal import append_metrics, load_state, save_grid, save_state
from models.ldm.latents import CachedLatents
from models.ldm.schedule import learning_rate_factor, set_learning_rate
from models.ldm.transformer import noise_schedule, transformer_from_config


def train_transformer(
    config: TransformerConfig,
    cached: CachedLatents,
    classes: tuple[str, ...],
    vae: AutoencoderKL,
    folder: Path,
    accelerator: Accelerator,
) -> DiTTransformer2DModel:
    """Train stage 2 in `folder`; `vae` only draws the grids. Returns the EMA network in evaluation mode."""
    torch.manual_seed(config.seed)
    channels, side = cached.values.shape[2], cached.values.shape[-1]
    plain = transformer_from_config(config, channels, side)
    averaged = transformer_from_config(config, channels, side).eval().requires_grad_(False)
    ema = EMAModel(plain.parameters(), decay=config.ema_decay, foreach=True)
    matrices, others = parameters_by_optimiser(plain)
    muon = torch.optim.Muon(matrices, config.matrix_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    first_step = 0
    if (state := load_state(folder / "state.pt")) is not None:
        first_step = cast(int, state["step"])
        plain.load_state_dict(cast(dict[str, torch.Tensor], state["transformer"]))
        muon.load_state_dict(cast(dict[str, Any], state["muon"]))
        adam.load_state_dict(cast(dict[str, Any], state["adam"]))
        ema.load_state_dict(cast(dict[str, object], state["ema"]))
    transformer, muon, adam = accelerator.prepare(torch.compile(plain) if config.compile else plain, muon, adam)
    ema.to(accelerator.device)
    schedule = noise_schedule(config)
    weights = picture_weights(cached.labels, config.class_balance)
    if accelerator.is_main_process:
        write_config(config, folder / "config.json")

    began = time.perf_counter()
    running: torch.Tensor | None = None
    main = accelerator.is_main_process
    progress = tqdm(
        range(first_step, config.steps), initial=first_step, total=config.steps, desc="dit", disable=not main
    )
    for step in progress:
        factor = learning_rate_factor(step, config.warmup_steps, config.steps, config.decay_steps)
        set_learning_rate(muon, config.matrix_learning_rate * factor)
        set_learning_rate(adam, config.learning_rate * factor)
        generator = generator_at(config.seed, step, accelerator.process_index)
        noisy, target, timesteps, labels = denoising_batch(config, cached, weights, schedule, generator)
        device = accelerator.device
        with attention_for(device):
            predicted = transformer(
                noisy.to(device), timestep=timesteps.to(device), class_labels=labels.to(device)
            ).sample
        loss = functional.mse_loss(predicted.float(), target.to(device))
        transformer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(transformer.parameters(), config.gradient_clip)
        muon.step()
        adam.step()
        ema.step(plain.parameters())
        running = loss.detach() if running is None else torch.lerp(loss.detach(), running, 0.98)
        done = step + 1
        if not main:
            continue
        if done % config.log_every == 0 or done == config.steps:
            seconds = round(time.perf_counter() - began, 1)
            figures = {"loss": round(float(running), 5), "gradient_norm": round(float(norm), 4)}
            append_metrics(folder / "metrics.jsonl", {"step": done, "seconds": seconds, **figures})
            progress.set_postfix(loss=figures["loss"])
        if done % config.save_every == 0 or done == config.steps:
            parts = {"transformer": plain, "muon": muon, "adam": adam, "ema": ema}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_state({"step": done, **states}, folder / "state.pt")
        if done % config.grid_every == 0 or done == config.steps:
            ema.copy_to(averaged.parameters())
            pipe = pipeline_of(averaged, vae, config, classes)
            labels_drawn = [index * len(classes) // 32 for index in range(32)]
            save_grid(drawn(pipe, labels_drawn, seed=0), folder / f"grid-{done:06d}.png", columns=8)
    accelerator.wait_for_everyone()
    ema.copy_to(averaged.parameters())
    return averaged


def parameters_by_optimiser(transformer: DiTTransformer2DModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the blocks, which Muon trains, and all else (embeddings, biases, first and last layer) for AdamW.

    Muon (https://kellerjordan.github.io/posts/muon/) orthogonalises each matrix's step: more progress than AdamW,
    for a seventh more time. The paper's AdamW with a constant rate is made for runs a hundred times as long.
    """
    matrices = {
        name: value
        for name, value in transformer.named_parameters()
        if name.startswith("transformer_blocks.") and value.ndim == 2 and "embedding_table" not in name
    }
    others = [value for name, value in transformer.named_parameters() if name not in matrices]
    return list(matrices.values()), others


def attention_for(device: torch.device) -> AbstractContextManager[object]:
    """Plain attention on CPUs: with torch 2.13's fused one a whole step on 64 tokens takes 1.5 times as long."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def picture_weights(labels: torch.Tensor, balance: float) -> torch.Tensor:
    """How often each picture is drawn, (N,) summing to 1: by the size of its class to the power of -balance."""
    weights = labels.bincount()[labels].double().pow(-balance)
    return weights / weights.sum()


def denoising_batch(
    config: TransformerConfig,
    cached: CachedLatents,
    weights: torch.Tensor,
    schedule: DDPMScheduler,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents (B, C, s, s), target v (arXiv 2202.00512, app. D), timesteps (B,), labels (B,), some dropped."""
    chosen = torch.multinomial(weights, config.batch, replacement=True, generator=generator)
    version = torch.randint(len(cached.values), (config.batch,), generator=generator)
    clean = cached.values[version, chosen]  # (B, C, s, s)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.randint(config.noise_steps, (config.batch,), generator=generator)
    # One draw for all blocks: a label is there for the whole network, or nowhere.
    dropped = torch.rand(config.batch, generator=generator) < config.label_dropout
    labels = torch.where(dropped, NULL_CLASS, cached.labels[chosen])
    return (
        schedule.add_noise(clean, noise, timesteps),
        schedule.get_velocity(clean, noise, timesteps),
        timesteps,
        labels,
    )
