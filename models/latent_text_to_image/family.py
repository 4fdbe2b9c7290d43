"""The adapter of diffusers' LDMTextToImagePipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from models.autoencoder import KLDecoder, latent_factor
from models.components import load_scheduler
from models.latent_diffusion import LatentDiffusion, Lora, ReferenceRequest, SourceError
from models.latent_text_to_image.modules import CODEBOOK_IN_FLOAT32, VQDecoder
from models.latent_text_to_image.reference import load_autoencoder, reference_image
from models.sizes import sizes_around
from models.stable_diffusion.modules import UNetDenoiser
from models.text.ldm_bert import ldm_bert_encoder
from models.unet import default_size, load_unet, size_multiple

DEFAULT_STEPS = 50  # LDMTextToImagePipeline.__call__(num_inference_steps=50, guidance_scale=1.0)
DEFAULT_SCALE = 1.0
FACTOR = 8  # LDMTextToImagePipeline.__call__ divides height and width by this number, whatever its autoencoder


class LatentTextToImage:
    """The paper's text-to-image model: BERT's tokens, a KL or VQ autoencoder, any size within its range."""

    name = "latent_text_to_image"
    pipeline = "LDMTextToImagePipeline"

    def load(self, source: Path, loras: Sequence[Lora] = ()) -> LatentDiffusion:
        """Reads unet/, vqvae/, bert/, tokenizer/ and scheduler/."""
        if loras:
            raise SourceError(f"--lora {loras[0].file}: {self.pipeline} has no adapters; export without --lora")
        vae = load_autoencoder(source)
        quantised = isinstance(vae, VQModel)
        channels: int = vae.quantize.vq_embed_dim if quantised else vae.config.latent_channels
        if latent_factor(vae) != FACTOR:
            raise SourceError(
                f"{source}: its vqvae has {latent_factor(vae)} pixels per latent, and {self.pipeline} divides by "
                f"{FACTOR}; it draws right sizes with an autoencoder of four levels"
            )
        unet = load_unet(source, self.pipeline, channels)
        text = ldm_bert_encoder(source, "bert_hidden")
        bert: Any = text.module.model
        width = bert.config.d_model
        if unet.config.cross_attention_dim != width:
            raise SourceError(
                f"{source}: bert gives {width} channels, and unet takes cross_attention_dim="
                f"{unet.config.cross_attention_dim}; they are of different models"
            )
        height, columns = default_size(unet)
        decoder: nn.Module = VQDecoder(vae) if quantised else KLDecoder(vae)
        return LatentDiffusion(
            name=source.name,
            family=self.name,
            pipeline=self.pipeline,
            denoiser=UNetDenoiser(unet),
            decoder=decoder,
            conditioning=("bert_hidden",),
            scheduler=load_scheduler(source),
            latent_shape=(channels, height, columns),
            image_shape=(vae.config.out_channels, FACTOR * height, FACTOR * columns),
            guided_channels=channels,
            default_steps=DEFAULT_STEPS,
            default_cfg_scale=DEFAULT_SCALE,
            text_encoders=(text,),
            sizes=sizes_around(max(height, columns), size_multiple(unet)),
            overflows=(CODEBOOK_IN_FLOAT32,) if quantised else (),
        )

    def reference_image(
        self, source: Path, scheduler: SchedulerMixin, request: ReferenceRequest, loras: Sequence[Lora] = ()
    ) -> Tensor:
        """The pipeline's own picture: float32 [batch, 3, height, width] in [0, 1]."""
        return reference_image(source, scheduler, request)
