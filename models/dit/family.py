"""The adapter of diffusers' DiTPipeline."""

import json
from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.autoencoder import KLDecoder, latent_factor
from models.components import load_component, load_scheduler
from models.dit.modules import AdaptableDiT, DiTDenoiser
from models.dit.original import restore_frequencies
from models.dit.reference import reference_image
from models.latent_diffusion import CLASS_LABELS, Labels, LatentDiffusion, Lora, ReferenceRequest, SourceError
from models.lora import merge_loras
from models.timesteps import store_timestep_frequencies

NULL_LABEL = 1000  # DiTPipeline.__call__ writes this number, whatever the size of the table
DEFAULT_STEPS = 50  # DiTPipeline.__call__(num_inference_steps=50, guidance_scale=4.0)
DEFAULT_CFG_SCALE = 4.0


class DiT:
    """DiT-S…XL at any size: labels in, adaLN-Zero, fixed image size."""

    name = "dit"
    pipeline = "DiTPipeline"

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads transformer/, vae/ and scheduler/; labels come from `id2label` of model_index.json."""
        transformer = load_component(AdaptableDiT, source, "transformer")
        restore_frequencies(transformer, source)
        merge_loras(transformer, loras)
        vae = load_component(AutoencoderKL, source, "vae")
        store_timestep_frequencies(transformer)
        num_classes = transformer.config.num_embeds_ada_norm
        if num_classes < NULL_LABEL:
            raise SourceError(
                f"{source}: the transformer embeds {num_classes} classes, and DiTPipeline takes {NULL_LABEL} as the "
                f"label of no class; train with num_embeds_ada_norm={NULL_LABEL}"
            )
        channels, size = transformer.config.in_channels, transformer.config.sample_size
        factor = latent_factor(vae)
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=DiTDenoiser(transformer),
            decoder=KLDecoder(vae),
            conditioning=(CLASS_LABELS,),
            scheduler=load_scheduler(source),
            latent_shape=(channels, size, size),
            image_shape=(vae.config.out_channels, factor * size, factor * size),
            guided_channels=channels,
            labels=Labels(read_labels(source, num_classes), NULL_LABEL),
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=DEFAULT_CFG_SCALE,
            blocks=("transformer_blocks",),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """DiTPipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request, loras)


def read_labels(source: Path, num_classes: int) -> dict[str, int]:
    """Label names by number; a name list such as "tench, Tinca tinca" gives each its number, as DiTPipeline does.

    A checkpoint without `id2label` gets the numbers themselves as names.
    """
    index = json.loads((source / "model_index.json").read_text())
    id2label: dict[str, str] = index.get("id2label") or {str(i): str(i) for i in range(num_classes)}
    return {name.strip(): int(number) for number, names in id2label.items() for name in names.split(",")}
