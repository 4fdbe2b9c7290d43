"""The adapter of diffusers' StableDiffusion3Pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import KLDecoder, KLEncoder, latent_factor
from models.components import load_component, load_scheduler
from models.latent_diffusion import (
    GRID_COLUMNS,
    GRID_ROWS,
    KnownOverflow,
    LatentDiffusion,
    Lora,
    ReferenceRequest,
    SizeRange,
    SourceError,
    TextEncoder,
)
from models.lora import merge_loras
from models.sd3.modules import SD3Denoiser
from models.sd3.reference import TimestepRule, has_t5, reference_image
from models.sizes import sizes_around
from models.text.clip import ClipText, clip_encoder
from models.text.t5 import T5_OVERFLOWS, T5Text, t5_encoder

DEFAULT_STEPS = 28  # StableDiffusion3Pipeline.__call__(num_inference_steps=28, guidance_scale=7.0)
DEFAULT_CFG_SCALE = 7.0
DEFAULT_STRENGTH = 0.6  # StableDiffusion3Img2ImgPipeline.__call__(strength=0.6)
T5_TOKENS = 256  # max_sequence_length of __call__
_LAST_BLOCKS = 3


class StableDiffusion3:
    """SD 3 and 3.5 at any size: two CLIPs, with or without T5, joint attention, guided."""

    name = "sd3"
    pipeline = "StableDiffusion3Pipeline"

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads transformer/, vae/, scheduler/, and three text encoders with their tokenizers; T5 may be absent."""
        transformer = load_component(SD3Transformer2DModel, source, "transformer")
        merge_loras(transformer, loras)
        vae = load_component(AutoencoderKL, source, "vae")
        encoders = text_encoders(source)
        check(source, transformer, vae, encoders)
        scheduler = load_scheduler(source)
        size, factor, patch = transformer.config.sample_size, latent_factor(vae), transformer.config.patch_size
        channels = transformer.config.in_channels
        sizes = size_range(transformer)
        texts = [output for encoder in encoders for output in encoder.outputs]
        t5 = len(encoders) > 2
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            overflows=(*overflows(transformer), *(T5_OVERFLOWS if t5 else ())),
            denoiser=SD3Denoiser(transformer, sizes.maximum // patch, None if t5 else T5_TOKENS),
            decoder=KLDecoder(vae),
            encoder=KLEncoder(vae),
            conditioning=(*texts, GRID_ROWS, GRID_COLUMNS),
            scheduler=scheduler,
            latent_shape=(channels, size, size),
            image_shape=(vae.config.out_channels, factor * size, factor * size),
            guided_channels=channels,
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=DEFAULT_CFG_SCALE,
            blocks=("transformer_blocks",),
            default_strength=DEFAULT_STRENGTH,
            strength_rounds_up=True,
            text_encoders=encoders,
            sizes=sizes,
            set_timesteps=TimestepRule(patch),
            timesteps_depend_on_size=scheduler.config.get("use_dynamic_shifting", False),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """The pipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request, loras)


def text_encoders(source: Path) -> tuple[TextEncoder, ...]:
    """CLIP-L, CLIP-G, and T5 unless model_index.json has null for it; the pipeline cuts both CLIPs at one length."""
    clip = clip_encoder(source, {"clip_hidden": "penultimate", "clip_pooled": "projected"})
    clip_2 = clip_encoder(
        source,
        {"clip_2_hidden": "penultimate", "clip_2_pooled": "projected"},
        "text_encoder_2",
        "tokenizer_2",
        length=clip.prompt.length,
    )
    if not has_t5(source):
        return clip, clip_2
    return clip, clip_2, t5_encoder(source, "text_encoder_3", "tokenizer_3", output="t5_hidden", length=T5_TOKENS)


def size_range(transformer: SD3Transformer2DModel) -> SizeRange:
    """Around the size of training, and no larger than the table of positions."""
    config = transformer.config
    around = sizes_around(config.sample_size, config.patch_size)
    return SizeRange(
        around.multiple, around.minimum, min(around.maximum, config.pos_embed_max_size * config.patch_size)
    )


def overflows(transformer: SD3Transformer2DModel) -> tuple[KnownOverflow, ...]:
    """Those of SD 3.5, which is trained in bfloat16; SD 3 runs in half precision as it is."""
    if transformer.config.qk_norm is None:
        return ()
    depth: int = transformer.config.num_layers
    last = "|".join(str(block) for block in range(max(depth - _LAST_BLOCKS, 0), depth))
    return (
        KnownOverflow(
            r"transformer_blocks\.\d+/(add|mul)",
            "SD 3.5: the residual stream and what is added to it pass 65504 in the last blocks",
        ),
        KnownOverflow(
            rf"transformer_blocks\.({last})\.ff(_context)?\.net\.2\b",
            "SD 3.5: the feed-forward output of the last blocks passes 65504 (large)",
        ),
    )


def check(
    source: Path, transformer: SD3Transformer2DModel, vae: AutoencoderKL, encoders: tuple[TextEncoder, ...]
) -> None:
    """Raises SourceError for components that do not fit together."""
    config = transformer.config
    clips = [cast(ClipText, encoder.module) for encoder in encoders[:2]]
    if config.pos_embed_max_size is None or config.sample_size > config.pos_embed_max_size * config.patch_size:
        raise SourceError(
            f"{source}: pos_embed_max_size is {config.pos_embed_max_size} for sample_size {config.sample_size}; the "
            f"table of positions has to hold the picture: correct transformer/config.json"
        )
    fits = {
        "in_channels": (config.in_channels, vae.config.latent_channels, "the VAE's latent channels"),
        "out_channels": (transformer.out_channels, config.in_channels, "in_channels: this is no text-to-image model"),
        "pooled_projection_dim": (
            config.pooled_projection_dim,
            sum(clip.tower.config.projection_dim for clip in clips),
            "the projections of text_encoder and text_encoder_2 together",
        ),
    }
    if len(encoders) > 2:
        width = cast(T5Text, encoders[2].module).model.config.d_model
        fits["joint_attention_dim"] = (config.joint_attention_dim, width, "the width of text_encoder_3")
    for name, (found, wanted, of_what) in fits.items():
        if found != wanted:
            raise SourceError(f"{source}: the transformer's {name} is {found}, and needs to be {wanted}: {of_what}")
    width = sum(clip.tower.config.hidden_size for clip in clips)
    if width > config.joint_attention_dim:
        raise SourceError(
            f"{source}: text_encoder and text_encoder_2 have {width} channels together, more than joint_attention_dim "
            f"{config.joint_attention_dim} of the transformer"
        )
