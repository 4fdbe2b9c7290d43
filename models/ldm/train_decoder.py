"""Stage 1b: the decoder learns to read latents that are a little wrong, as those that a denoiser draws are.

With a KL weight of 1e-6 the posterior is so narrow that stage 1 shows the decoder hardly any noise, and a drawn latent
decodes to a mosaic. Here the encoder is frozen, noise of random strength is added to its latents, and the decoder goes
on with the losses of stage 1 (the noise-augmented decoder of RAE, arXiv 2510.11690). Latents stay what they were.

B batch · S side in pixels
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import nn
from tqdm import tqdm

from models.ldm.adversarial import PatchDiscriminator, adaptive_weight, hinge_loss
from models.ldm.augment import batch_at, generator_at
from models.ldm.config import AutoencoderConfig, DecoderConfig, write_config
from models.ldm.journal import append_metrics, load_state, save_state
from models.ldm.perceptual import perceptual_distance
from models.ldm.pictures import Pictures
from models.ldm.schedule import learning_rate_factor, set_learning_rate


class Decoder(nn.Module):
    """The part of an AutoencoderKL behind the latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.decoder(self.post_quant_conv(latents))
        return pixels


def train_decoder(
    config: DecoderConfig,
    stage1: AutoencoderConfig,
    vae: AutoencoderKL,
    pictures: Pictures,
    judge_state: dict[str, torch.Tensor],
    folder: Path,
    accelerator: Accelerator,
) -> None:
    """Train the decoder of `vae` in place, in `folder`; `judge_state` is the discriminator's at the end of stage 1.

    `vae` is balanced and has its scale factor, so that `config.noise` counts in deviations of a latent.
    """
    vae.requires_grad_(False)
    decoder = Decoder(vae).requires_grad_(True).train()
    judge = PatchDiscriminator(stage1.discriminator_channels, stage1.discriminator_layers)
    judge.load_state_dict(judge_state)
    optimiser = torch.optim.Adam(decoder.parameters(), betas=(0.5, 0.9))
    judge_optimiser = torch.optim.Adam(judge.parameters(), betas=(0.5, 0.9))
    parts: dict[str, Any] = {
        "decoder": decoder,
        "judge": judge,
        "optimiser": optimiser,
        "judge_optimiser": judge_optimiser,
    }
    state = load_state(folder / "state.pt")
    first_step = 0
    if state is not None:
        first_step = cast(int, state["step"])
        for name, part in parts.items():
            part.load_state_dict(cast(dict[str, torch.Tensor], state[name]))
    prepared, players, optimiser, judge_optimiser = accelerator.prepare(decoder, judge, optimiser, judge_optimiser)
    perceptual = perceptual_distance(stage1.lpips_vgg16, stage1.lpips_linear).to(accelerator.device)
    main = accelerator.is_main_process
    if main:
        write_config(config, folder / "config.json")

    for step in tqdm(
        range(first_step, config.steps), initial=first_step, total=config.steps, desc="decoder", disable=not main
    ):
        factor = learning_rate_factor(step, config.warmup_steps, config.steps, config.steps)
        set_learning_rate(optimiser, config.learning_rate * factor)
        set_learning_rate(judge_optimiser, config.learning_rate * factor)
        generator = generator_at(config.seed, step, accelerator.process_index)
        pixels = batch_at(pictures, config.batch, config.shift, generator).to(accelerator.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), accelerator.autocast():
            latents = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor  # (B, C, s, s)
        strength = config.noise * torch.rand(len(pixels), 1, 1, 1, generator=generator)
        noise = strength * torch.randn(latents.shape, generator=generator)
        copies = prepared((latents + noise.to(latents.device)) / vae.config.scaling_factor)  # (B, 3, S, S)

        l1 = (copies.float() - pixels).abs()
        distance = perceptual(copies.float(), pixels)  # (B,)
        nll = (l1 + stage1.perceptual_weight * distance[:, None, None, None]).sum() / len(pixels)
        judge.requires_grad_(False)
        with accelerator.autocast():
            generator_loss = -judge(copies).float().mean()
        judge.requires_grad_(True)
        weight = adaptive_weight(nll, generator_loss, vae.decoder.conv_out.weight)
        optimiser.zero_grad()
        accelerator.backward(nll + stage1.adversarial_weight * weight * generator_loss)
        optimiser.step()

        real, fake = players(torch.cat([pixels, copies.detach()])).float().chunk(2)
        judge_optimiser.zero_grad()
        accelerator.backward(hinge_loss(real, fake))
        judge_optimiser.step()

        done = step + 1
        if main and (done % config.log_every == 0 or done == config.steps):
            figures = {"l1": l1.mean(), "adaptive_weight": weight, "real": real.mean(), "fake": fake.mean()}
            values = {name: round(float(value.detach()), 5) for name, value in figures.items()}
            append_metrics(folder / "metrics.jsonl", {"step": done, **values})
        if main and (done % config.save_every == 0 or done == config.steps):
            save_state({"step": done, **{name: part.state_dict() for name, part in parts.items()}}, folder / "state.pt")
    accelerator.wait_for_everyone()
    vae.eval()
