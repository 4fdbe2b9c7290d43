"""The families that are known, by the pipeline class that `model_index.json` names."""

from collections.abc import Mapping

from models.dit.family import DiT
from models.latent_diffusion import Family
from models.pixart.family import PixArt

FAMILIES: Mapping[str, Family] = {
    "DiTPipeline": DiT(),
    "PixArtAlphaPipeline": PixArt("PixArtAlphaPipeline"),
    "PixArtSigmaPipeline": PixArt("PixArtSigmaPipeline"),
}
