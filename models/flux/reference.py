"""FluxPipeline and FluxImg2ImgPipeline themselves, as the reference of the parity gate.

One generator draws everything, in this order: text to image, the initial noise [batch, C, H, W], then the solver's
draws; image to image, the posterior's noise [1, C, H, W] (one picture, encoded once for all prompts), the noise that
is mixed into its latents [batch, C, H, W], then the solver's.

True guidance (`true_cfg_scale`) needs a negative prompt, or the pipelines leave it out in silence: where none is
given it is "" here. Schedulers that the pipelines cannot call are mended as models/flow_matching.py says.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxImg2ImgPipeline, FluxPipeline, FluxTransformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import latent_factor
from models.components import load_component, load_pipeline
from models.flow_matching import (
    Setting,
    mend_scheduler,
    name_scale_noise,
    picture_tensor,
    resolution_shift,
    set_flow_timesteps,
    takes,
)
from models.flux.modules import PATCH
from models.latent_diffusion import Lora, ReferenceRequest
from models.lora import load_loras
from models.weights import read_object

DEFAULT_GUIDANCE = 3.5  # FluxPipeline.__call__(guidance_scale=3.5)
_MAX_SEQUENCE_LENGTH = 512  # FluxPipeline.__call__(max_sequence_length=512)
_SAMPLE_SIZE = 128  # FluxPipeline.default_sample_size
_UNSTATED = 32  # AutoencoderKL(sample_size=32)
_MAX_SHIFT = 1.15  # where the scheduler has no max_shift


def reference_image(
    source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
) -> Tensor:
    """Runs the pipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1]."""
    transformer = load_component(FluxTransformer2DModel, source, "transformer")
    load_loras(transformer, loras)
    picture = request.init_image
    pipeline_class = FluxPipeline if picture is None else FluxImg2ImgPipeline
    pipeline = load_pipeline(pipeline_class, source, scheduler, transformer=transformer)
    factor = latent_factor(pipeline.vae)
    height, width = (side or factor * default_size(pipeline.vae) for side in (request.height, request.width))
    latent = height // factor, width // factor
    # FluxImg2ImgPipeline does not ask for use_flow_sigmas, as FluxPipeline does, and hands its own sigmas over.
    own_sigmas = picture is not None and scheduler.config.get("use_flow_sigmas", False)
    if own_sigmas or not takes(scheduler, pipeline_settings(scheduler, request.steps, *latent)):
        mend_scheduler(scheduler, lambda: set_timesteps(scheduler, request.steps, *latent))
    if picture is not None:
        name_scale_noise(scheduler)
        _count_steps(pipeline, request.steps)
    negative = list(request.negative_prompts or [""] * len(request.prompts)) if request.cfg_scale > 1 else None
    over = {} if picture is None else {"image": picture_tensor(picture), "strength": request.strength}
    result = pipeline(
        prompt=list(request.prompts),
        negative_prompt=negative,
        true_cfg_scale=request.cfg_scale,
        guidance_scale=DEFAULT_GUIDANCE if request.guidance is None else request.guidance,
        num_inference_steps=request.steps,
        max_sequence_length=t5_tokens(source),
        height=height,
        width=width,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
        **over,
    )
    images: Tensor = result.images
    return images


def default_size(vae: AutoencoderKL) -> int:
    """Height and width of the latents that are drawn by default.

    FluxPipeline has 128 written into it, whatever the checkpoint; a small model says by its VAE's sample_size (1024
    for FLUX.1, in pixels) that it was trained for less. AutoencoderKL's own default, which a config without the number
    has too, says nothing.
    """
    stated = vae.config.sample_size
    pixels = min(stated) if isinstance(stated, (list, tuple)) else stated
    if pixels in (None, _UNSTATED):
        return _SAMPLE_SIZE
    trained = int(pixels) // latent_factor(vae)
    return max(min(_SAMPLE_SIZE, trained) // PATCH * PATCH, 2 * PATCH)


def t5_tokens(source: Path) -> int:
    """The tokens that T5 is given: FluxPipeline's 512, or fewer where the checkpoint's tokenizer was made for fewer.

    A small model says so by its tokenizer's model_max_length: most of 512 tokens would be padding, in every step. How
    much padding there is changes the picture a little, so both sides of a comparison take this number. Raises
    SourceError for a file that is not JSON.
    """
    path = source / "tokenizer_2" / "tokenizer_config.json"
    length = read_object(path).get("model_max_length") if path.is_file() else None
    return min(_MAX_SEQUENCE_LENGTH, length) if isinstance(length, int) and length > 0 else _MAX_SEQUENCE_LENGTH


def pipeline_settings(scheduler: SchedulerMixin, steps: int, height: int, width: int) -> dict[str, Setting]:
    """What FluxPipeline.__call__ hands to `scheduler.set_timesteps`, for latents of H × W."""
    mu = resolution_shift(scheduler, (height // PATCH) * (width // PATCH), _MAX_SHIFT)
    if scheduler.config.get("use_flow_sigmas", False):
        return {"num_inference_steps": steps, "mu": mu}
    return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": mu}


def set_timesteps(scheduler: SchedulerMixin, steps: int, height: int, width: int) -> None:
    """As FluxPipeline does it, for latents of H × W; by `steps` alone for a scheduler with which it would raise."""
    set_flow_timesteps(scheduler, steps, pipeline_settings(scheduler, steps, height, width))


def _count_steps(pipeline: FluxImg2ImgPipeline, steps: int) -> None:
    """FluxImg2ImgPipeline counts timesteps where it means steps: more of them with a solver of second order."""
    as_counted = pipeline.get_timesteps
    pipeline.get_timesteps = lambda _counted, strength, device: as_counted(steps, strength, device)
