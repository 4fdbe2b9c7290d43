"""StableDiffusion3Pipeline and its img2img sibling themselves, as the reference of the parity gate.

One generator draws everything, in this order: text to image, the initial noise [batch, C, H, W], then the solver's
draws; image to image, the posterior's noise [1, C, H, W] (one picture, encoded once for all prompts), the noise that
is mixed into its latents [batch, C, H, W], then the solver's.

Schedulers that the pipelines cannot call are mended as models/flow_matching.py says.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
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
from models.latent_diffusion import Lora, ReferenceRequest, SourceError
from models.lora import load_loras
from models.weights import read_object

_MAX_SHIFT = 1.16  # where the scheduler has no max_shift


def reference_image(
    source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
) -> Tensor:
    """Runs the pipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1]."""
    transformer = load_component(SD3Transformer2DModel, source, "transformer")
    load_loras(transformer, loras)
    picture = request.init_image
    pipeline_class = StableDiffusion3Pipeline if picture is None else StableDiffusion3Img2ImgPipeline
    absent = {} if has_t5(source) else {"text_encoder_3": None, "tokenizer_3": None}  # or from_pretrained raises
    pipeline = load_pipeline(pipeline_class, source, scheduler, transformer=transformer, **absent)
    factor = latent_factor(pipeline.vae)
    height, width = (side or factor * transformer.config.sample_size for side in (request.height, request.width))
    settings = TimestepRule(transformer.config.patch_size)
    latent = height // factor, width // factor
    if not takes(scheduler, settings.of_pipeline(scheduler, request.steps, *latent)):
        mend_scheduler(scheduler, lambda: settings(scheduler, request.steps, *latent))
    if picture is not None:
        name_scale_noise(scheduler)
    over = {} if picture is None else {"image": picture_tensor(picture), "strength": request.strength}
    result = pipeline(
        prompt=list(request.prompts),
        negative_prompt=None if request.negative_prompts is None else list(request.negative_prompts),
        guidance_scale=request.cfg_scale,
        num_inference_steps=request.steps,
        height=height,
        width=width,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
        **over,
    )
    images: Tensor = result.images
    return images


def has_t5(source: Path) -> bool:
    """Whether model_index.json names a third text encoder; [null, null] is its absence."""
    path = source / "model_index.json"
    named = read_object(path).get("text_encoder_3", [None])
    if not isinstance(named, list):  # diffusers 0.42.1 raises a TypeError for null
        raise SourceError(f"{path}: text_encoder_3 is {named!r}; write [null, null] for a model without T5")
    return None not in named


class TimestepRule:
    """How StableDiffusion3Pipeline sets the timesteps of its scheduler, for a transformer of one patch size."""

    def __init__(self, patch: int) -> None:
        self.patch = patch

    def __call__(self, scheduler: SchedulerMixin, steps: int, height: int, width: int) -> None:
        """For latents of H × W; by `steps` alone for a scheduler with which the pipeline would raise."""
        set_flow_timesteps(scheduler, steps, self.of_pipeline(scheduler, steps, height, width))

    def of_pipeline(self, scheduler: SchedulerMixin, steps: int, height: int, width: int) -> dict[str, Setting]:
        """What StableDiffusion3Pipeline.__call__ hands to `scheduler.set_timesteps`."""
        if not scheduler.config.get("use_dynamic_shifting", False):
            return {"num_inference_steps": steps}
        tokens = (height // self.patch) * (width // self.patch)
        return {"num_inference_steps": steps, "mu": resolution_shift(scheduler, tokens, _MAX_SHIFT)}
