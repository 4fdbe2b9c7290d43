"""A family's modules as a picture, in torch: what a bundle does, without tracing anything.

Compared with the family's reference it shows that prompts, masks, guidance, scales and timesteps are the pipeline's.
"""

import copy
import inspect
import math

import torch
from diffusers.utils.torch_utils import randn_tensor
from latentc import schema
from latentc.request import skipped_steps
from latentc.text import encode_texts
from torch import Tensor

from models.latent_diffusion import GRID_COLUMNS, GRID_ROWS, GUIDANCE, LatentDiffusion, ReferenceRequest, TextRule


@torch.no_grad()
def draw(model: LatentDiffusion, request: ReferenceRequest) -> Tensor:
    """float32 [batch, 3, height, width] in [0, 1], for text-to-image families with symbolic sizes."""
    factor = model.image_shape[1] // model.latent_shape[1]
    height, width = (
        (request.height or model.image_shape[1]) // factor,
        (request.width or model.image_shape[2]) // factor,
    )
    guided = request.cfg_scale > 1
    scheduler = copy.deepcopy(model.scheduler)
    model.set_timesteps(scheduler, request.steps, height, width)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    batch = len(request.prompts)
    shape = (batch, model.latent_shape[0], height, width)
    if request.init_image is None:
        latents = randn_tensor(shape, generator) * scheduler.init_noise_sigma
        timesteps = scheduler.timesteps
    else:
        latents, timesteps = _over_image(model, scheduler, request, shape, generator)
    conditioning = {
        GUIDANCE: torch.full((batch * (1 + guided),), request.guidance or 0.0),
        GRID_ROWS: torch.arange(height // model.sizes.multiple, dtype=torch.float32),
        GRID_COLUMNS: torch.arange(width // model.sizes.multiple, dtype=torch.float32),
        **_encoded(model, request, guided),
    }
    inputs = [conditioning[name] for name in model.conditioning]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    noise = {"generator": generator} if takes_generator else {}
    for timestep in timesteps:
        sample = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), timestep)
        output = model.denoiser(sample, timestep.float().expand(len(sample)), *inputs)
        if guided:
            conditional, unconditional = output.chunk(2)
            output = request.cfg_scale * conditional + (1 - request.cfg_scale) * unconditional
        latents = scheduler.step(output, timestep, latents, **noise, return_dict=False)[0]
    return model.decoder(latents)


def psnr(actual: Tensor, expected: Tensor) -> float:
    """Peak signal to noise ratio in dB, of numbers in [0, 1]."""
    error = float((actual - expected).double().square().mean())
    return -10 * math.log10(error) if error else math.inf


def _over_image(
    model: LatentDiffusion, scheduler, request: ReferenceRequest, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The noisy latents of the initial image and the timesteps that are left, for schedulers with add_noise."""
    skipped = skipped_steps(request.steps, request.strength, model.strength_rounds_up) * scheduler.order
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    pixels = torch.from_numpy(request.init_image).permute(2, 0, 1)[None]  # [1, 3, height, width]
    clean = model.encoder(pixels, randn_tensor((1, *shape[1:]), generator))
    return scheduler.add_noise(clean.expand(shape), randn_tensor(shape, generator), timesteps[:1]), timesteps


def _encoded(model: LatentDiffusion, request: ReferenceRequest, guided: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    negative = request.negative_prompts or ("",) * len(request.prompts)
    for encoder in model.text_encoders:
        branches = [(encoder.prompt, request.prompts), *([(encoder.negative, negative)] if guided else [])]
        outputs = [_run(encoder, rule, texts) for rule, texts in branches]
        for name, *values in zip(encoder.outputs, *outputs, strict=True):
            if guided and model.zero_null and request.negative_prompts is None:
                values[1] = torch.zeros_like(values[0])
            found[name] = torch.cat(values)
    return found


def _run(encoder, rule: TextRule, texts: tuple[str, ...]) -> tuple[Tensor, ...]:
    held = schema.TextRule(length=rule.length, prefix=rule.prefix, lower_strip=rule.lower_strip)
    tokens = encode_texts(encoder.tokenizer, texts, held, encoder.pad_id)
    ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
    return encoder.module(ids, mask) if encoder.takes_mask else encoder.module(ids)
