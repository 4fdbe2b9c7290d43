"""LDMTextToImagePipeline with any scheduler, as the reference of the parity gate.

diffusers 0.42.1 wrote it for DDIM, PNDM and the like: it neither scales the initial noise (init_noise_sigma) nor the
U-Net's input (scale_model_input), and it passes the scheduler no generator. `ScaledInput` and `SeededScheduler` do
what every later pipeline does, and the noise comes in scaled; with DDIM, PNDM and DPM-Solver++ no number changes
(tests/models/latent_text_to_image/test_family.py compares it with the bare pipeline).

The pipeline has no negative prompt, its other branch is always "": `NegativeFirst` puts one in its place. Where no
guidance is asked for there is one branch: at a scale of 1 in the pipeline, of 1 or less here as in every other one.
One generator draws the initial noise [batch, C, H, W], then the solver's.
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, LDMTextToImagePipeline, UNet2DConditionModel, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from models.components import load_component, load_pipeline
from models.latent_diffusion import ReferenceRequest, SourceError


class ScaledInput:
    """A U-Net that scales its input by the scheduler before it denoises."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.config = unet.config

    def __call__(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        """As the U-Net's."""
        scaled = self.scheduler.scale_model_input(sample, timestep)
        return SimpleNamespace(sample=self.unet(scaled, timestep, encoder_hidden_states, return_dict=False)[0])


class SeededScheduler:
    """A scheduler whose steps draw from one generator."""

    def __init__(self, scheduler: SchedulerMixin, generator: torch.Generator) -> None:
        self.scheduler = scheduler
        # Not every step() takes a generator (Euler's does, UniPC's does not): ask for the parameter.
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self.extra = {"generator": generator} if takes_generator else {}

    @property
    def timesteps(self) -> Tensor:
        """The scheduler's own timesteps [calls]."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    def set_timesteps(self, steps: int) -> None:
        """As the scheduler's."""
        self.scheduler.set_timesteps(steps)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> SimpleNamespace:
        """As the scheduler's."""
        previous = self.scheduler.step(model_output, timestep, sample, **self.extra).prev_sample
        return SimpleNamespace(prev_sample=previous)


class NegativeFirst:
    """A tokenizer whose first call, which the pipeline makes with [""] * batch, is given the negative prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, negative_prompts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.waiting: list[str] | None = list(negative_prompts)

    def __call__(self, texts: list[str], **options: object) -> BatchEncoding:
        """As the tokenizer's."""
        given, self.waiting = self.waiting or texts, None
        return self.tokenizer(given, **options)


def reference_image(source: Path, scheduler: SchedulerMixin, request: ReferenceRequest) -> Tensor:
    """Runs the pipeline on the CPU in float32: [batch, 3, height, width] in [0, 1]."""
    pipeline = load_pipeline(LDMTextToImagePipeline, source, scheduler, vqvae=load_autoencoder(source))
    height, width = (
        size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor for size in (request.height, request.width)
    )
    guided = request.cfg_scale > 1
    generator = torch.Generator("cpu").manual_seed(request.seed)
    channels, factor = pipeline.unet.config.in_channels, pipeline.vae_scale_factor
    noise = torch.randn(len(request.prompts), channels, height // factor, width // factor, generator=generator)
    scheduler.set_timesteps(request.steps)  # some init_noise_sigma depend on the steps
    pipeline.unet = ScaledInput(pipeline.unet, scheduler)
    pipeline.scheduler = SeededScheduler(scheduler, generator)
    if request.negative_prompts is not None and guided:
        pipeline.tokenizer = NegativeFirst(pipeline.tokenizer, request.negative_prompts)
    result = pipeline(
        prompt=list(request.prompts),
        height=height,
        width=width,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale if guided else 1.0,
        latents=noise * scheduler.init_noise_sigma,
        output_type="pt",
    )
    images: Tensor = result.images
    return images


def load_autoencoder(source: Path) -> AutoencoderKL | VQModel:
    """SOURCE/vqvae, which is of either class; raises SourceError for another one."""
    path = source / "vqvae" / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("_class_name") if path.is_file() else None
    classes = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
    if found not in classes:
        raise SourceError(f"{path}: its _class_name is {found!r}; LDMTextToImagePipeline has AutoencoderKL or VQModel")
    vae = load_component(classes[found], source, "vqvae")
    if found == "VQModel" and vae.config.norm_type != "group":
        raise SourceError(f"{path}: norm_type is {vae.config.norm_type!r}; only 'group' is supported")
    return vae
