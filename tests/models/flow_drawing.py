"""The modules of a flow-matching family as a picture, in torch: what a bundle does, without tracing anything."""

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from latentc.request import skipped_steps
from torch import Tensor

from export.examples import token_inputs
from models.latent_diffusion import GRID_COLUMNS, GRID_ROWS, GUIDANCE, LatentDiffusion, ReferenceRequest


@torch.no_grad()
def draw(model: LatentDiffusion, scheduler: SchedulerMixin, request: ReferenceRequest) -> Tensor:
    """float32 [batch, 3, height, width] in [0, 1]; `scheduler` is changed."""
    _, side, _ = model.latent_shape
    factor = model.image_shape[1] // side
    height, width = (side if given is None else given // factor for given in (request.height, request.width))
    model.set_timesteps(scheduler, request.steps, height, width)
    latents, timesteps = first_latents(model, scheduler, request, (height, width))
    weights = [request.cfg_scale, 1 - request.cfg_scale] if request.cfg_scale > 1 else [1.0]
    rows = len(weights) * len(request.prompts)
    known = {
        GRID_ROWS: torch.arange(height // model.sizes.multiple, dtype=torch.float32),
        GRID_COLUMNS: torch.arange(width // model.sizes.multiple, dtype=torch.float32),
        GUIDANCE: torch.full((rows,), request.guidance or model.default_guidance or 0.0),
        **encoded(model, request, guided=len(weights) > 1),
    }
    conditioning = [known[name] for name in model.conditioning]
    for timestep in timesteps:
        output = model.denoiser(torch.cat([latents] * len(weights)), timestep.float().expand(rows), *conditioning)
        output = sum(weight * branch for weight, branch in zip(weights, output.chunk(len(weights)), strict=True))
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return model.decoder(latents)


def first_latents(
    model: LatentDiffusion, scheduler: SchedulerMixin, request: ReferenceRequest, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The latents that the loop begins with, and the timesteps that are left."""
    generator = torch.Generator("cpu").manual_seed(request.seed)
    shape = (len(request.prompts), model.latent_shape[0], *size)
    if request.init_image is None:
        return torch.randn(shape, generator=generator), scheduler.timesteps
    picture = torch.from_numpy(request.init_image).permute(2, 0, 1)[None]
    image = model.encoder(picture, torch.randn((1, *shape[1:]), generator=generator)).expand(shape)
    noise = torch.randn(shape, generator=generator)
    skipped = scheduler.order * skipped_steps(request.steps, request.strength, model.strength_rounds_up)
    scheduler.set_begin_index(skipped)
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(image, timesteps[:1], noise), timesteps
    return scheduler.add_noise(image, noise, timesteps[:1]), timesteps


def encoded(model: LatentDiffusion, request: ReferenceRequest, *, guided: bool) -> dict[str, Tensor]:
    """What the text encoders give: name -> [branches · batch, …]."""
    texts = request.prompts
    if guided:
        texts += request.negative_prompts or ("",) * len(texts)
    return {
        name: values
        for encoder in model.text_encoders
        for name, values in zip(encoder.outputs, encoder.module(*token_inputs(encoder, texts).values()), strict=True)
    }
