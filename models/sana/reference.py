"""SanaPipeline itself, as the reference of the parity gate.

Sizes are exact (resolution binning off), captions are not cleaned; the instruction before the prompt is the pipeline's
own. Without a size the pipeline draws 1024×1024 whatever the model; here it is the size of training, as everywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.components import load_component, load_pipeline
from models.latent_diffusion import Lora, ReferenceRequest
from models.lora import load_loras


def reference_image(
    source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
) -> Tensor:
    """Runs SanaPipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1]."""
    transformer = load_component(SanaTransformer2DModel, source, "transformer")
    load_loras(transformer, loras)
    vae = load_component(AutoencoderDC, source, "vae")
    pipeline = load_pipeline(SanaPipeline, source, scheduler, transformer=transformer, vae=vae)
    default = transformer.config.sample_size * pipeline.vae_scale_factor
    negative = "" if request.negative_prompts is None else list(request.negative_prompts)
    result = pipeline(
        prompt=list(request.prompts),
        negative_prompt=negative,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        height=request.height or default,
        width=request.width or default,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="pt",
        clean_caption=False,
        use_resolution_binning=False,
    )
    image: Tensor = result.images
    return image
