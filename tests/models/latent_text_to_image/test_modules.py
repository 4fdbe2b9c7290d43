"""The quantised decoder: against diffusers' own, and as ONNX at sizes that were not traced.

The denoiser is Stable Diffusion's (tests/models/stable_diffusion/test_modules.py).
"""

import torch
from diffusers import VQModel
from torch.export import Dim

from models.latent_text_to_image.modules import VQDecoder
from tests.models.tracing import relative_error, session_from_module
from tests.pipelines.latent_text_to_image import random_vqvae


def as_the_pipeline_calls_it(vae: VQModel, latents: torch.Tensor) -> torch.Tensor:
    """LDMTextToImagePipeline.__call__, from its 'scale and decode' on."""
    image = vae.decode(1 / vae.config.scaling_factor * latents).sample
    return (image / 2 + 0.5).clamp(0, 1)


def test_decoder_is_diffusers():
    torch.manual_seed(1)
    latents = torch.randn(2, 4, 4, 6)
    with torch.no_grad():
        expected = as_the_pipeline_calls_it(random_vqvae(), latents)
        actual = VQDecoder(random_vqvae())(latents)
        assert relative_error(actual, expected) < 1e-5
        assert relative_error(VQDecoder(random_vqvae())(torch.randn(2, 4, 4, 6)), expected) > 0.1


def test_graph_at_other_sizes():
    decoder = VQDecoder(random_vqvae(levels=2))
    dims = {0: Dim("batch"), 2: 2 * Dim("grid_height"), 3: 2 * Dim("grid_width")}
    run = session_from_module(decoder, {"latents": (torch.randn(2, 4, 4, 6), dims)})
    torch.manual_seed(2)
    for batch, height, width in ((1, 4, 10), (3, 8, 4)):
        latents = torch.randn(batch, 4, height, width)
        with torch.no_grad():
            assert relative_error(run(latents), decoder(latents)) < 1e-5
