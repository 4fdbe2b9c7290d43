"""The families that are known, by the pipeline class that `model_index.json` names."""

from collections.abc import Mapping

from models.dit.family import DiT
from models.flux.family import Flux
from models.latent_diffusion import Family
from models.latent_text_to_image.family import LatentTextToImage
from models.pixart.family import PixArt
from models.sana.family import Sana
from models.sd3.family import StableDiffusion3
from models.sdxl.family import SDXL
from models.stable_diffusion.family import LatentConsistency, StableDiffusion

FAMILIES: Mapping[str, Family] = {
    "DiTPipeline": DiT(),
    "FluxPipeline": Flux(),
    "LDMTextToImagePipeline": LatentTextToImage(),
    "LatentConsistencyModelPipeline": LatentConsistency(),
    "PixArtAlphaPipeline": PixArt("PixArtAlphaPipeline"),
    "PixArtSigmaPipeline": PixArt("PixArtSigmaPipeline"),
    "SanaPipeline": Sana(),
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusion3Pipeline": StableDiffusion3(),
    "StableDiffusionXLPipeline": SDXL(),
}
