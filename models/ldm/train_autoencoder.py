"""Stage 1 of LDM (arXiv 2112.10752, section 3.1): L1 + perceptual + KL, from a start step on the patch discriminator.

Contract: `train_autoencoder` runs to `config.steps`, or goes on from the folder's last checkpoint; batches and noise
depend only on (seed, step, rank), so that a resumed run ends in the same weights. It knows no labels, and no stage 2.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import nn
from tqdm import tqdm

from models.ldm.adversarial import PatchDiscriminator, adaptive_weight, hinge_loss
from models.ldm.augment import batch_at, generator_at, pixels_from_uint8
from models.ldm.autoencoder import TrainableAutoencoder, autoencoder_from_config, reconstructed
from models.ldm.config import AutoencoderConfig, write_config
from models.ldm.journal import append_metrics, load_state, save_grid, save_state
from models.ldm.measures import psnr_db, sharpness_ratio
from models.ldm.perceptual import perceptual_distance
from models.ldm.pictures import Split
from models.ldm.schedule import learning_rate_factor, set_learning_rate


@dataclass
class Players:
    """The two networks with their optimisers, as accelerate prepared them."""

    autoencoder: nn.Module
    discriminator: nn.Module
    optimiser: torch.optim.Optimizer
    discriminator_optimiser: torch.optim.Optimizer


def train_autoencoder(config: AutoencoderConfig, split: Split, folder: Path, accelerator: Accelerator) -> AutoencoderKL:
    """Train stage 1 in `folder`; returns the network in evaluation mode, its scale factor not yet measured."""
    torch.manual_seed(config.seed)
    size = split.train.images.shape[-1]
    vae = autoencoder_from_config(config, size).to(memory_format=torch.channels_last)
    trainable = TrainableAutoencoder(vae)
    discriminator = PatchDiscriminator(config.discriminator_channels, config.discriminator_layers)
    discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    players = Players(
        trainable,
        discriminator,
        torch.optim.Adam(trainable.parameters(), config.learning_rate, betas=(0.5, 0.9)),
        torch.optim.Adam(discriminator.parameters(), config.discriminator_learning_rate, betas=(0.5, 0.9)),
    )
    first_step = _resume(players, folder / "state.pt")
    players = Players(*cast(Any, accelerator.prepare(*vars(players).values())))
    perceptual = perceptual_distance(config.lpips_vgg16, config.lpips_linear).to(accelerator.device)
    if accelerator.is_main_process:
        write_config(config, folder / "config.json")
    latent_shape = (config.batch, config.latent_channels, *(2 * [size >> (len(config.block_channels) - 1)]))

    steps = range(first_step, config.steps)
    began = time.perf_counter()
    progress = tqdm(
        steps, initial=first_step, total=config.steps, desc=folder.name, disable=not accelerator.is_main_process
    )
    for step in progress:
        factor = learning_rate_factor(step, config.warmup_steps, config.steps, config.decay_steps)
        set_learning_rate(players.optimiser, config.learning_rate * factor)
        set_learning_rate(players.discriminator_optimiser, config.discriminator_learning_rate * factor)
        generator = generator_at(config.seed, step, accelerator.process_index)
        pixels = batch_at(split.train, config.batch, config.shift, generator)
        noise = torch.randn(latent_shape, generator=generator)
        pixels = pixels.to(accelerator.device, memory_format=torch.channels_last)
        metrics = _train_step(config, players, perceptual, accelerator, pixels, noise.to(accelerator.device), step)
        done = step + 1
        if not accelerator.is_main_process:
            continue
        if done % config.log_every == 0 or done == config.steps:
            values = {name: round(float(value.detach()), 5) for name, value in metrics.items()}
            seconds = round(time.perf_counter() - began, 1)
            append_metrics(folder / "metrics.jsonl", {"step": done, "seconds": seconds, **values})
            progress.set_postfix(l1=values["l1"])
        if done % config.grid_every == 0 or done == config.steps:
            figures = evaluate_autoencoder(vae, split.held_out.images, accelerator, folder / f"grid-{done:06d}.png")
            append_metrics(folder / "metrics.jsonl", {"step": done, **figures})
        if done % config.save_every == 0 or done == config.steps:
            _save(players, accelerator, done, folder / "state.pt")
        if done == config.adversarial_start:  # where the run without the GAN forks off
            _save(players, accelerator, done, folder / "fork.pt")
    accelerator.wait_for_everyone()
    return vae.eval()


def _train_step(
    config: AutoencoderConfig,
    players: Players,
    perceptual: nn.Module,
    accelerator: Accelerator,
    pixels: torch.Tensor,
    noise: torch.Tensor,
    step: int,
) -> dict[str, torch.Tensor]:
    """One step of the autoencoder and, from the start step on, one of the discriminator."""
    playing = config.adversarial and step >= config.adversarial_start
    batch = len(pixels)
    reconstruction, kl = players.autoencoder(pixels, noise)  # (B, 3, S, S), (B,)
    l1 = (reconstruction.float() - pixels).abs()
    distance = perceptual(reconstruction.float(), pixels)  # (B,)
    # As the reference code has it: the distance is spread over the pixels, then all is summed per picture.
    nll = (l1 + config.perceptual_weight * distance[:, None, None, None]).sum() / batch
    loss = nll + config.kl_weight * kl.sum() / batch
    metrics = {"l1": l1.mean().detach(), "perceptual": distance.mean().detach(), "kl": kl.mean().detach()}
    if playing:
        judge = accelerator.unwrap_model(players.discriminator).requires_grad_(False)
        with accelerator.autocast():
            generator_loss = -judge(reconstruction).float().mean()
        judge.requires_grad_(True)
        last_layer = cast(TrainableAutoencoder, accelerator.unwrap_model(players.autoencoder)).last_layer
        weight = adaptive_weight(nll, generator_loss, last_layer)
        loss = loss + config.adversarial_weight * weight * generator_loss
        metrics |= {"generator": generator_loss.detach(), "adaptive_weight": weight}
    players.optimiser.zero_grad()
    accelerator.backward(loss)
    players.optimiser.step()
    if playing:
        both = players.discriminator(torch.cat([pixels, reconstruction.detach()]))  # (2B, 1, s, s)
        real, fake = both.float().chunk(2)
        discriminator_loss = hinge_loss(real, fake)
        players.discriminator_optimiser.zero_grad()
        accelerator.backward(discriminator_loss)
        players.discriminator_optimiser.step()
        metrics |= {"discriminator": discriminator_loss, "real": real.mean(), "fake": fake.mean()}
    return metrics


def evaluate_autoencoder(
    vae: AutoencoderKL, images: torch.Tensor, accelerator: Accelerator, grid: Path | None = None
) -> dict[str, float]:
    """Reconstruct (N, 3, S, S) uint8 pictures in float32: PSNR, sharpness, a grid of originals above copies."""
    training = vae.training
    vae.eval()
    pixels = pixels_from_uint8(images).to(accelerator.device)
    copies = reconstructed(vae, pixels)
    vae.train(training)
    if grid is not None:
        rows = [
            torch.cat([pixels[k : k + 16], copies[k : k + 16]]) for k in range(0, min(64, len(images) // 16 * 16), 16)
        ]
        save_grid(torch.cat(rows) if rows else copies, grid, columns=16)
    figures = {"psnr_db": psnr_db(pixels, copies), "sharpness": sharpness_ratio(pixels, copies)}
    return {name: round(value, 4) for name, value in figures.items()}


def measured_scaling_factor(latents: torch.Tensor) -> float:
    """1 / standard deviation over all elements of the latents, as LDM measures it (arXiv 2112.10752, appendix G)."""
    deviation = latents.float().std().item()
    if not (math.isfinite(deviation) and deviation > 0.0):
        raise ValueError("the latents are constant or not finite: the autoencoder of stage 1 has collapsed")
    return 1.0 / deviation


def _save(players: Players, accelerator: Accelerator, step: int, path: Path) -> None:
    state: dict[str, object] = {"step": step}
    for name, player in vars(players).items():
        module = accelerator.unwrap_model(player) if isinstance(player, nn.Module) else player
        state[name] = module.state_dict()
    save_state(state, path)


def _resume(players: Players, path: Path) -> int:
    state = load_state(path)
    if state is None:
        return 0
    for name, player in vars(players).items():
        player.load_state_dict(state[name])
    return cast(int, state["step"])
