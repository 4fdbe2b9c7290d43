"""StableDiffusionPipeline and its img2img sibling, as they are, as the reference of the parity gate.

One generator draws everything, in this order: text to image, the initial noise [batch, C, H, W], then the solver's
draws; image to image, the posterior's noise [1, C, H, W] (one picture, encoded once for all prompts), the noise that
is added to its latents [batch, C, H, W], then the solver's.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.components import load_pipeline
from models.flow_matching import picture_tensor
from models.latent_diffusion import Lora, ReferenceRequest
from models.lora import load_pipeline_loras
from models.unet import without_deprecations


def reference_image(
    source: Path,
    scheduler: SchedulerMixin,
    request: ReferenceRequest,
    loras: Sequence[Lora] = (),
    *,
    corrects_scheduler: bool = True,
) -> Tensor:
    """Runs the pipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1].

    Without `corrects_scheduler` the scheduler's config stays as it is, as in LatentConsistencyModelPipeline.
    """
    uncorrected = scheduler.config
    with without_deprecations():
        pipeline = load_pipeline(
            StableDiffusionPipeline if request.init_image is None else StableDiffusionImg2ImgPipeline,
            source,
            scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        if not corrects_scheduler:
            restore_config(pipeline.scheduler, uncorrected)
        load_pipeline_loras(pipeline, loras)
        return run_pipeline(pipeline, request)


def restore_config(scheduler: SchedulerMixin, config: FrozenDict) -> None:
    """Undoes what StableDiffusionPipeline corrected; in place, as it did (it replaces `_internal_dict`)."""
    scheduler._internal_dict = config


def run_pipeline(pipeline: DiffusionPipeline, request: ReferenceRequest) -> Tensor:
    """Calls a pipeline of this kind, text to image or image to image by the request: as `reference_image`."""
    distilled = pipeline.unet.config.time_cond_proj_dim is not None
    common = {
        "prompt": list(request.prompts),
        "negative_prompt": None if request.negative_prompts is None else list(request.negative_prompts),
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance if distilled else request.cfg_scale,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "output_type": "pt",
    }
    if request.init_image is None:
        result = pipeline(height=request.height, width=request.width, **common)
    else:
        result = pipeline(image=picture_tensor(request.init_image), strength=request.strength, **common)
    images: Tensor = result.images
    return images
