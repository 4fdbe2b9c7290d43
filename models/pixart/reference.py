"""The PixArt pipelines themselves, as the reference of the parity gate.

Sizes are exact (resolution binning off: it would draw another size and resize the picture), and captions are not
cleaned (that needs beautifulsoup4 and ftfy); a prompt is still put in lower case and stripped, as the pipelines do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.components import load_component, load_pipeline
from models.latent_diffusion import Lora, ReferenceRequest
from models.lora import load_loras
from models.pixart.modules import AdaptablePixArt

_CLASSES: Mapping[str, type[DiffusionPipeline]] = {
    "PixArtAlphaPipeline": PixArtAlphaPipeline,
    "PixArtSigmaPipeline": PixArtSigmaPipeline,
}


def reference_image(
    pipeline_class: str, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
) -> Tensor:
    """Runs the pipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1]."""
    transformer = load_component(AdaptablePixArt, source, "transformer")
    load_loras(transformer, loras)
    vae = load_component(AutoencoderKL, source, "vae")
    pipeline = load_pipeline(_CLASSES[pipeline_class], source, scheduler, transformer=transformer, vae=vae)
    negative = "" if request.negative_prompts is None else list(request.negative_prompts)
    result = pipeline(
        prompt=list(request.prompts),
        negative_prompt=negative,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        height=request.height,
        width=request.width,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
        clean_caption=False,
        use_resolution_binning=False,
    )
    image: Tensor = result.images
    return image
