"""The adapter of diffusers' StableDiffusionPipeline (SD 1 and 2), and of LatentConsistencyModelPipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import KLDecoder, KLEncoder, latent_factor
from models.components import load_component, load_scheduler
from models.latent_diffusion import GUIDANCE, LatentDiffusion, Lora, ReferenceRequest, SourceError
from models.lora import merge_pipeline_loras
from models.sizes import sizes_around
from models.stable_diffusion.modules import UNetDenoiser
from models.stable_diffusion.reference import reference_image, restore_config
from models.text.clip import clip_encoder
from models.unet import default_size, load_unet, size_multiple, without_deprecations


class StableDiffusion:
    """SD 1 and 2, epsilon or v prediction, guided or guidance-distilled, at any size within its range."""

    name = "stable_diffusion"
    pipeline = "StableDiffusionPipeline"
    default_steps = 50  # StableDiffusionPipeline.__call__(num_inference_steps=50, guidance_scale=7.5)
    default_scale = 7.5
    corrects_scheduler = True  # the constructor sets steps_offset and clip_sample of old configs
    has_img2img = True

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads unet/, vae/, text_encoder/, tokenizer/ and scheduler/; a safety checker is not read."""
        vae = load_component(AutoencoderKL, source, "vae")
        channels: int = vae.config.latent_channels
        unet = load_unet(source, self.pipeline, channels)
        text = clip_encoder(source, {"clip_hidden": "last"})
        clip: Any = text.module.tower
        width = clip.config.hidden_size
        if unet.config.cross_attention_dim != width:
            raise SourceError(
                f"{source}: text_encoder gives {width} channels, and unet takes cross_attention_dim="
                f"{unet.config.cross_attention_dim}; they are of different models"
            )
        scheduler = load_scheduler(source)
        uncorrected = scheduler.config
        # The constructor corrects configs of old checkpoints in place: steps_offset, clip_sample, sample_size.
        with without_deprecations():
            pipeline = StableDiffusionPipeline(
                vae=None,
                text_encoder=clip,
                tokenizer=None,
                unet=unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        if not self.corrects_scheduler:
            restore_config(scheduler, uncorrected)
        merge_pipeline_loras(pipeline, loras)
        height, width = default_size(unet)
        factor = latent_factor(vae)
        distilled = unet.config.time_cond_proj_dim is not None
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=UNetDenoiser(unet),
            decoder=KLDecoder(vae),
            encoder=KLEncoder(vae) if self.has_img2img else None,
            conditioning=("clip_hidden", GUIDANCE) if distilled else ("clip_hidden",),
            scheduler=scheduler,
            latent_shape=(channels, height, width),
            image_shape=(vae.config.out_channels, factor * height, factor * width),
            guided_channels=channels,
            default_steps=self.default_steps,
            default_cfg_scale=1.0 if distilled else self.default_scale,
            default_guidance=self.default_scale if distilled else None,
            guided=not distilled,
            text_encoders=(text,),
            sizes=sizes_around(max(height, width), size_multiple(unet)),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """The pipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request, loras, corrects_scheduler=self.corrects_scheduler)


class LatentConsistency(StableDiffusion):
    """SD distilled into few steps (LCM, arXiv 2310.04378), from directories that name a pipeline class of its own.

    StableDiffusionPipeline draws the same picture with its scheduler as it is, and takes any other one too. Over an
    image LatentConsistencyModelImg2ImgPipeline runs all steps between the timesteps that the strength leaves, which no
    other pipeline does: not supported.
    """

    pipeline = "LatentConsistencyModelPipeline"
    default_steps = 4  # LatentConsistencyModelPipeline.__call__(num_inference_steps=4, guidance_scale=8.5)
    default_scale = 8.5
    corrects_scheduler = False
    has_img2img = False
