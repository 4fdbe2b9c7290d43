"""DiTPipeline with any scheduler, as the reference of the parity gate.

diffusers 0.42.1's DiTPipeline is written for schedulers that neither scale the initial noise nor
the model's input, and it passes them no generator. With Euler or Heun it starts from noise that is
`init_noise_sigma` times too small and hands `step` the *scaled* sample; with DDPM it draws from the
global generator. `PipelineScheduler` stands between the two and mends exactly that, in the way that
every other diffusers pipeline does it; with DDIM, DPM-Solver++ and UniPC it changes no number
(tests/models/dit/test_reference.py compares it with the bare pipeline).
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, DiTPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.components import load_component
from models.dit.modules import AdaptableDiT
from models.dit.original import restore_frequencies
from models.latent_diffusion import Lora, ReferenceRequest
from models.lora import load_loras


class PipelineScheduler:
    """A scheduler behind DiTPipeline: keeps the unscaled sample, scales the noise, passes the generator."""

    def __init__(self, scheduler: SchedulerMixin, generator: torch.Generator, guided: bool) -> None:
        self.scheduler = scheduler
        self.generator = generator
        self.guided = guided
        self.sample: Tensor | None = None

    @property
    def timesteps(self) -> Tensor:
        """The scheduler's own timesteps [calls]."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    def set_timesteps(self, steps: int) -> None:
        """As the scheduler's."""
        self.scheduler.set_timesteps(steps)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """sample [branches·batch, C, H, W], both guidance halves equal."""
        if self.sample is None:
            sample = sample * self.scheduler.init_noise_sigma
        self.sample = sample
        scaled: Tensor = self.scheduler.scale_model_input(sample, timestep)
        return scaled

    def step(self, model_output: Tensor, timestep: Tensor, _scaled_sample: Tensor) -> SimpleNamespace:
        """Steps one half (they are equal), so that injected noise has the batch's shape, and doubles it again."""
        assert self.sample is not None, "DiTPipeline scales the input before it steps"
        halves = 2 if self.guided else 1
        batch = len(model_output) // halves
        # Not every step() takes a generator (Euler's does, UniPC's does not): ask for the parameter.
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": self.generator} if takes_generator else {}
        previous = self.scheduler.step(model_output[:batch], timestep, self.sample[:batch], **extra).prev_sample
        return SimpleNamespace(prev_sample=torch.cat([previous] * halves))


def reference_image(
    source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
) -> Tensor:
    """Runs DiTPipeline on the CPU in float32, adapters beside the weights: [batch, 3, height, width] in [0, 1]."""
    transformer = load_component(AdaptableDiT, source, "transformer")
    restore_frequencies(transformer, source)
    load_loras(transformer, loras)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    pipeline = DiTPipeline(
        transformer=transformer,
        vae=load_component(AutoencoderKL, source, "vae"),
        scheduler=scheduler,
    )
    pipeline.scheduler = PipelineScheduler(scheduler, generator, guided=request.cfg_scale > 1)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(
        class_labels=list(request.labels),
        guidance_scale=request.cfg_scale,
        generator=generator,
        num_inference_steps=request.steps,
        output_type="pt",
    )
    image: Tensor = result.images
    return image
