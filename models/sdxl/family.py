"""The adapter of diffusers' StableDiffusionXLPipeline: the base model, and what was distilled from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import SDXL_VAE_OVERFLOW, KLDecoder, KLEncoder, latent_factor
from models.components import load_component, load_scheduler
from models.latent_diffusion import (
    GRID_COLUMNS,
    GRID_ROWS,
    GUIDANCE,
    LatentDiffusion,
    Lora,
    ReferenceRequest,
    SourceError,
    TextEncoder,
)
from models.lora import merge_pipeline_loras
from models.sdxl.modules import SDXLDenoiser
from models.sdxl.reference import reference_image
from models.sizes import sizes_around
from models.text.clip import clip_encoder
from models.unet import default_size, load_unet, size_multiple

DEFAULT_STEPS = 50  # StableDiffusionXLPipeline.__call__(num_inference_steps=50, guidance_scale=5.0)
DEFAULT_SCALE = 5.0
DEFAULT_STRENGTH = 0.3  # StableDiffusionXLImg2ImgPipeline.__call__(strength=0.3)


class SDXL:
    """SDXL's base model, guided or guidance-distilled, at any size within its range."""

    name = "sdxl"
    pipeline = "StableDiffusionXLPipeline"

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads unet/, vae/, both text encoders and tokenizers, and scheduler/."""
        if not (source / "text_encoder").is_dir():
            raise SourceError(f"{source}: no text_encoder; a refiner is not supported, give the base model's directory")
        vae = load_component(AutoencoderKL, source, "vae")
        channels: int = vae.config.latent_channels
        unet = load_unet(source, self.pipeline, channels, addition="text_time")
        clip = clip_encoder(source, {"clip_hidden": "penultimate"})
        clip_2 = clip_encoder(
            source,
            {"clip_2_hidden": "penultimate", "clip_2_pooled": "projected"},
            name="text_encoder_2",
            tokenizer="tokenizer_2",
        )
        _check_widths(source, unet, clip, clip_2)
        scheduler = load_scheduler(source)
        pipeline = StableDiffusionXLPipeline(
            vae=None,
            text_encoder=clip.module.tower,
            text_encoder_2=clip_2.module.tower,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        )
        merge_pipeline_loras(pipeline, loras, unused=_unused_layer(clip))
        height, width = default_size(unet)
        factor = latent_factor(vae)
        distilled = unet.config.time_cond_proj_dim is not None
        conditioning = (GRID_ROWS, GRID_COLUMNS, "clip_hidden", "clip_2_hidden", "clip_2_pooled")
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=SDXLDenoiser(unet, factor),
            decoder=KLDecoder(vae),
            encoder=KLEncoder(vae),
            default_strength=DEFAULT_STRENGTH,
            conditioning=(*conditioning, GUIDANCE) if distilled else conditioning,
            scheduler=scheduler,
            latent_shape=(channels, height, width),
            image_shape=(vae.config.out_channels, factor * height, factor * width),
            guided_channels=channels,
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=1.0 if distilled else DEFAULT_SCALE,
            default_guidance=DEFAULT_SCALE if distilled else None,
            guided=not distilled,
            text_encoders=(clip, clip_2),
            zero_null=_zeros_for_no_prompt(source),
            sizes=sizes_around(max(height, width), size_multiple(unet)),
            overflows=(SDXL_VAE_OVERFLOW,) if vae.config.force_upcast else (),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """The pipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request, loras)


def _check_widths(source: Path, unet: UNet2DConditionModel, clip: TextEncoder, clip_2: TextEncoder) -> None:
    """That both encoders belong to this U-Net."""
    modules: list[Any] = [clip.module, clip_2.module]
    widths = [module.tower.config.hidden_size for module in modules]
    if unet.config.cross_attention_dim != sum(widths):
        raise SourceError(
            f"{source}: text encoders give {widths[0]} + {widths[1]} channels, and unet takes cross_attention_dim="
            f"{unet.config.cross_attention_dim}; they are of different models"
        )
    pooled = modules[1].projection.out_features
    wanted = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    if wanted != pooled:
        raise SourceError(
            f"{source}: text_encoder_2 pools to {pooled} channels, and unet takes {wanted} beside six size embeddings; "
            f"they are of different models, or this is a refiner, which is not supported"
        )


def _unused_layer(clip: TextEncoder) -> str:
    """Adapter keys of CLIP-L's last layer, diffusers' and kohya's: hidden_states[-2] does not depend on it."""
    return rf"^(text_encoder\.|lora_te1_)text_model[._]encoder[._]layers[._]{clip.module.last_layer}[._]"


def _zeros_for_no_prompt(source: Path) -> bool:
    """Whether a picture without a negative prompt is guided away from zeros; the pipeline's default is True."""
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    return bool(index.get("force_zeros_for_empty_prompt", True))
