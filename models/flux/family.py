"""The adapter of diffusers' FluxPipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import FLUX_VAE_OVERFLOW, KLDecoder, KLEncoder, latent_factor
from models.components import load_component, load_scheduler
from models.flux.modules import PATCH, FluxDenoiser
from models.flux.reference import DEFAULT_GUIDANCE, default_size, reference_image, set_timesteps, t5_tokens
from models.latent_diffusion import (
    GRID_COLUMNS,
    GRID_ROWS,
    GUIDANCE,
    KnownOverflow,
    LatentDiffusion,
    Lora,
    ReferenceRequest,
    SourceError,
)
from models.lora import merge_loras
from models.sizes import sizes_around
from models.text.clip import ClipText, clip_encoder
from models.text.t5 import T5_OVERFLOWS, T5Text, t5_encoder

DEFAULT_STEPS = 28  # FluxPipeline.__call__(num_inference_steps=28, true_cfg_scale=1.0)
DEFAULT_STRENGTH = 0.6  # FluxImg2ImgPipeline.__call__(strength=0.6)
RESIDUAL_OVERFLOW = KnownOverflow(
    r"transformer_blocks\.\d+/(add|mul)",
    "FLUX: the residual stream and what is added to it pass 65504 (diffusers clips them in half precision)",
)


class Flux:
    """FLUX.1-dev and -schnell at any size: CLIP's pooled state and T5's hidden states in, guidance distilled or not."""

    name = "flux"
    pipeline = "FluxPipeline"

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads transformer/, vae/, text_encoder/, tokenizer/, text_encoder_2/, tokenizer_2/ and scheduler/."""
        transformer = load_component(FluxTransformer2DModel, source, "transformer")
        merge_loras(transformer, loras)
        vae = load_component(AutoencoderKL, source, "vae")
        clip = clip_encoder(source, {"clip_pooled": "pooled"})
        t5 = t5_encoder(source, "text_encoder_2", "tokenizer_2", output="t5_hidden", length=t5_tokens(source))
        check(source, transformer, vae, cast(ClipText, clip.module), cast(T5Text, t5.module))
        scheduler = load_scheduler(source)
        size, factor = default_size(vae), latent_factor(vae)
        channels = transformer.config.in_channels // PATCH**2
        guided = transformer.config.guidance_embeds
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=FluxDenoiser(transformer),
            decoder=KLDecoder(vae),
            encoder=KLEncoder(vae),
            conditioning=("clip_pooled", "t5_hidden", *((GUIDANCE,) if guided else ()), GRID_ROWS, GRID_COLUMNS),
            scheduler=scheduler,
            latent_shape=(channels, size, size),
            image_shape=(vae.config.out_channels, factor * size, factor * size),
            guided_channels=channels,
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=1.0,
            default_guidance=DEFAULT_GUIDANCE if guided else None,
            default_strength=DEFAULT_STRENGTH,
            strength_rounds_up=True,
            text_encoders=(clip, t5),
            sizes=sizes_around(size, PATCH),
            set_timesteps=set_timesteps,
            timesteps_depend_on_size=scheduler.config.get("use_dynamic_shifting", False),
            overflows=(RESIDUAL_OVERFLOW, FLUX_VAE_OVERFLOW, *T5_OVERFLOWS),
            blocks=("transformer_blocks", "single_transformer_blocks"),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """The pipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request, loras)


def check(source: Path, transformer: FluxTransformer2DModel, vae: AutoencoderKL, clip: ClipText, t5: T5Text) -> None:
    """Raises SourceError for components that do not fit together."""
    config = transformer.config
    clip_width, t5_width = clip.tower.config.hidden_size, t5.model.config.d_model
    if config.patch_size != 1:
        raise SourceError(f"{source}: the transformer's patch_size is {config.patch_size}; FluxPipeline packs for 1")
    fits = {
        "in_channels": (config.in_channels, PATCH**2 * vae.config.latent_channels, "4 times the VAE's latent channels"),
        "out_channels": (transformer.out_channels, config.in_channels, "in_channels: this is no text-to-image model"),
        "joint_attention_dim": (config.joint_attention_dim, t5_width, "the width of text_encoder_2"),
        "pooled_projection_dim": (config.pooled_projection_dim, clip_width, "the width of text_encoder"),
    }
    for name, (found, wanted, of_what) in fits.items():
        if found != wanted:
            raise SourceError(f"{source}: the transformer's {name} is {found}, and needs to be {wanted}: {of_what}")
