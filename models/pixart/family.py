"""The adapter of diffusers' PixArtAlphaPipeline and PixArtSigmaPipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import SDXL_VAE_OVERFLOW, KLDecoder, latent_factor
from models.components import load_component, load_scheduler
from models.latent_diffusion import (
    GRID_COLUMNS,
    GRID_ROWS,
    KnownOverflow,
    LatentDiffusion,
    Lora,
    ReferenceRequest,
    SourceError,
)
from models.lora import merge_loras
from models.pixart.modules import AdaptablePixArt, PixArtDenoiser
from models.pixart.reference import reference_image
from models.sizes import sizes_around
from models.text.t5 import T5_OVERFLOWS, t5_encoder

HIDDEN, MASK = "t5_hidden", "t5_mask"
DEFAULT_STEPS = 20  # both pipelines' __call__(num_inference_steps=20, guidance_scale=4.5)
DEFAULT_CFG_SCALE = 4.5
CONDITIONED_SIZE = 128  # PixArtAlphaPipeline hands over the pixel size where sample_size is this number, and only there


@dataclass(frozen=True)
class _Kind:
    """What differs between the two pipeline classes."""

    length: int  # max_sequence_length of __call__
    knows_pixel_size: bool
    overflows: tuple[KnownOverflow, ...]


_KINDS: Mapping[str, _Kind] = {
    "PixArtAlphaPipeline": _Kind(length=120, knows_pixel_size=True, overflows=()),
    "PixArtSigmaPipeline": _Kind(length=300, knows_pixel_size=False, overflows=(SDXL_VAE_OVERFLOW,)),
}


class PixArt:
    """PixArt-α and -Σ at any size: T5 with its mask in, adaLN-single, learned variance split off."""

    name = "pixart"

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self._kind = _KINDS[pipeline]

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads transformer/, vae/, text_encoder/, tokenizer/ and scheduler/."""
        transformer = load_component(AdaptablePixArt, source, "transformer")
        self._check(source, transformer)
        merge_loras(transformer, loras)
        vae = load_component(AutoencoderKL, source, "vae")
        factor = latent_factor(vae)
        config = transformer.config
        size: int = config.sample_size
        text_encoder = t5_encoder(
            source,
            "text_encoder",
            "tokenizer",
            output=HIDDEN,
            length=self._kind.length,
            mask_output=MASK,
            lower_strip=True,
        )
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=PixArtDenoiser(transformer, factor),
            decoder=KLDecoder(vae),
            conditioning=(HIDDEN, MASK, GRID_ROWS, GRID_COLUMNS),
            scheduler=load_scheduler(source),
            latent_shape=(config.in_channels, size, size),
            image_shape=(vae.config.out_channels, factor * size, factor * size),
            guided_channels=config.in_channels,
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=DEFAULT_CFG_SCALE,
            blocks=("transformer_blocks",),
            text_encoders=(text_encoder,),
            sizes=sizes_around(size, config.patch_size),
            overflows=(*self._kind.overflows, *T5_OVERFLOWS),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """The pipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(self.pipeline, source, scheduler, request, loras)

    def _check(self, source: Path, transformer: AdaptablePixArt) -> None:
        config = transformer.config
        if transformer.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise SourceError(
                f"{source}: the transformer has {transformer.out_channels} output channels for {config.in_channels} of "
                f"the latents; {self.pipeline} takes as many, or twice as many with a learned variance"
            )
        given = self._kind.knows_pixel_size and config.sample_size == CONDITIONED_SIZE
        if transformer.use_additional_conditions and not given:
            raise SourceError(
                f"{source}: the transformer has use_additional_conditions and sample_size {config.sample_size}; only "
                f"PixArtAlphaPipeline at sample_size {CONDITIONED_SIZE} gives them: correct transformer/config.json"
            )
