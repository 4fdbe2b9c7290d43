"""StableDiffusionXLPipeline and its img2img sibling, as they are, as the reference of the parity gate.

One generator draws everything, in the order of Stable Diffusion's reference. The watermark is off.
"""

from collections.abc import Sequence
from pathlib import Path

from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.components import load_pipeline
from models.latent_diffusion import Lora, ReferenceRequest
from models.lora import load_pipeline_loras
from models.stable_diffusion.reference import run_pipeline


def reference_image(
    source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
) -> Tensor:
    """Runs the pipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1]."""
    pipeline = load_pipeline(
        StableDiffusionXLPipeline if request.init_image is None else StableDiffusionXLImg2ImgPipeline,
        source,
        scheduler,
        add_watermarker=False,
    )
    load_pipeline_loras(pipeline, loras)
    return run_pipeline(pipeline, request)
