"""The adapter of diffusers' SanaPipeline."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

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
from models.sana.modules import DCDecoder, SanaDenoiser
from models.sana.reference import reference_image
from models.sizes import sizes_around
from models.text.gemma import gemma_encoder

HIDDEN, MASK = "gemma_hidden", "gemma_mask"
LENGTH = 300  # SanaPipeline.__call__(max_sequence_length=300, num_inference_steps=20, guidance_scale=4.5)
DEFAULT_STEPS = 20
DEFAULT_CFG_SCALE = 4.5

# Patterns are searched in a node's module path, which ends in the operator's name, and in the names of its weights.
LINEAR_ATTENTION_OVERFLOW = KnownOverflow(
    r"\.attn1/[^/]+$",  # the attention's own products; those of its projections are of attn1.to_q and so on
    "linear attention sums keys times values over all pixels, and no softmax bounds them; diffusers casts them to "
    "float32 (SanaLinearAttnProcessor2_0)",
)
AUTOENCODER_OVERFLOW = KnownOverflow(
    r"vae\.decoder\b",
    "the model cards run the DC-AE of float16 checkpoints in bfloat16; diffusers casts its linear attention to float32",
)
GEMMA_OVERFLOWS = (
    KnownOverflow(
        r"\.layers\.\d+/add", "Gemma 2: trained in bfloat16, and the model cards of SANA run it so: residual"
    ),
    KnownOverflow(r"mlp\.down_proj\b", "Gemma 2: trained in bfloat16: the feed-forward output, before its norm"),
)


class Sana:
    """SANA at any size: Gemma 2 with an instruction before the prompt, linear attention, a 32× autoencoder."""

    name = "sana"
    pipeline = "SanaPipeline"

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads transformer/, vae/, text_encoder/, tokenizer/ and scheduler/."""
        transformer = load_component(SanaTransformer2DModel, source, "transformer")
        _check(source, transformer)
        merge_loras(transformer, loras)
        vae = load_component(AutoencoderDC, source, "vae")
        config = transformer.config
        size: int = config.sample_size
        factor = 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        denoiser = SanaDenoiser(transformer)
        text_encoder = gemma_encoder(
            source,
            "text_encoder",
            "tokenizer",
            output=HIDDEN,
            mask_output=MASK,
            length=LENGTH,
            instruction=instruction(),
        )
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=denoiser,
            decoder=DCDecoder(vae),
            conditioning=(HIDDEN, MASK, *(() if denoiser.positions is None else (GRID_ROWS, GRID_COLUMNS))),
            scheduler=load_scheduler(source),
            latent_shape=(config.in_channels, size, size),
            image_shape=(vae.config.in_channels, factor * size, factor * size),
            guided_channels=config.in_channels,
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=DEFAULT_CFG_SCALE,
            blocks=("transformer_blocks",),
            text_encoders=(text_encoder,),
            sizes=sizes_around(size, config.patch_size),
            overflows=(LINEAR_ATTENTION_OVERFLOW, AUTOENCODER_OVERFLOW, *GEMMA_OVERFLOWS),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """SanaPipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request, loras)


def instruction() -> str:
    """What SanaPipeline puts before a prompt by default (complex_human_instruction), read off its signature."""
    default: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(default)


def _check(source: Path, transformer: SanaTransformer2DModel) -> None:
    config = transformer.config
    if config.guidance_embeds:
        raise SourceError(
            f"{source}: the transformer has guidance_embeds, which SanaPipeline does not give it (it is a SANA-Sprint, "
            f"of SanaSprintPipeline); take a SANA checkpoint without them"
        )
    out_channels = config.out_channels or config.in_channels
    if out_channels not in (config.in_channels, 2 * config.in_channels):
        raise SourceError(
            f"{source}: the transformer has {out_channels} output channels for {config.in_channels} of the latents; "
            f"SanaPipeline takes as many, or twice as many with a learned variance"
        )
