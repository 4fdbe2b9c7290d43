"""AutoencoderKL as traced modules: against diffusers' own arithmetic, and as ONNX at sizes that were not traced."""

import re

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from torch.export import Dim

from models.autoencoder import SDXL_VAE_OVERFLOW, KLDecoder, KLEncoder, latent_factor
from models.upsampling import Doubling
from tests.models.tracing import relative_error, session_from_module
from tests.pipelines.vae import random_vae

FLUX = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "quant_conv": False}
PLAYGROUND = {"scaling_factor": 0.5, "latents_mean": [-1.5, 0.6, -0.3, 1.0], "latents_std": [8.0, 5.0, 7.0, 4.0]}
BATCH, GRID_HEIGHT, GRID_WIDTH = Dim("batch"), Dim("grid_height"), Dim("grid_width")
SIZES = ((1, 2, 10), (3, 8, 4))  # batch, H, W


def test_factor_counts_the_levels():
    assert [latent_factor(random_vae(levels=levels)) for levels in (2, 3, 4)] == [2, 4, 8]


@pytest.mark.parametrize("options", [{}, FLUX], ids=["sd", "flux"])
def test_decoder_is_diffusers_arithmetic(options):
    vae = random_vae(**options)
    latents = torch.randn(2, vae.config.latent_channels, 4, 6)
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    with torch.no_grad():
        expected = VaeImageProcessor().postprocess(vae.decode(scaled).sample, output_type="pt")
        assert torch.equal(KLDecoder(vae)(latents), expected)


def test_latents_with_mean_and_deviation_are_scaled_as_the_sdxl_pipeline_does():
    vae = random_vae(**PLAYGROUND)
    latents = torch.randn(2, 4, 4, 4)
    mean, deviation = (torch.tensor(PLAYGROUND[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = vae.decode(latents * deviation / 0.5 + mean).sample / 2 + 0.5
        assert torch.equal(KLDecoder(vae)(latents), expected.clamp(0, 1))
    scale = KLEncoder(vae).scale
    torch.testing.assert_close(scale(scale.inverse(latents)), latents)


@pytest.mark.parametrize("options", [{}, FLUX], ids=["sd", "flux"])
def test_encoder_is_the_posterior_that_diffusers_draws(options):
    vae = random_vae(**options)
    image = torch.rand(2, 3, 16, 24)
    noise = torch.randn(2, vae.config.latent_channels, 4, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        posterior = vae.encode(VaeImageProcessor().preprocess(image)).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(7))
        expected = (drawn - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        encoder = KLEncoder(vae)
        assert torch.equal(encoder(image, noise), expected)
        assert relative_error(encoder(image, 0 * noise), expected) > 0.01  # the noise matters


def test_decoder_graph_at_other_sizes():
    decoder = KLDecoder(random_vae(**FLUX))
    dims = {0: BATCH, 2: 2 * GRID_HEIGHT, 3: 2 * GRID_WIDTH}
    decode = session_from_module(decoder, {"latents": (torch.randn(2, 16, 4, 6), dims)})
    for batch, height, width in SIZES:
        latents = torch.randn(batch, 16, height, width)
        with torch.no_grad():
            assert relative_error(decode(latents), decoder(latents)) < 1e-5


def test_encoder_graph_at_other_sizes():
    encoder = KLEncoder(random_vae())
    dims = {0: BATCH, 2: 2 * GRID_HEIGHT, 3: 2 * GRID_WIDTH}
    pixels = {0: BATCH, 2: 8 * GRID_HEIGHT, 3: 8 * GRID_WIDTH}
    inputs = {"image": (torch.rand(2, 3, 16, 24), pixels), "noise": (torch.randn(2, 4, 4, 6), dims)}
    encode = session_from_module(encoder, inputs)
    for batch, height, width in SIZES:
        image, noise = torch.rand(batch, 3, 4 * height, 4 * width), torch.randn(batch, 4, height, width)
        with torch.no_grad():
            assert relative_error(encode(image, noise), encoder(image, noise)) < 1e-5


def test_upsampling_keeps_its_weights_and_has_no_limit_of_rows():
    vae = random_vae()
    names = set(vae.state_dict())
    latents = torch.randn(64, 4, 2, 2)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        decoder = KLDecoder(vae)
        assert relative_error(vae.decode(latents).sample, expected) < 1e-5
    assert set(vae.state_dict()) == names
    assert any(isinstance(module, Doubling) for module in decoder.modules())


def test_known_overflows_name_weights_of_the_vae_and_of_nothing_else():
    vae = random_vae()
    found = [name for name, _ in KLDecoder(vae).named_parameters() if re.search(SDXL_VAE_OVERFLOW.pattern, name)]
    parts = {".".join(name.split(".")[:3]) for name in found}
    assert "vae.decoder.up_blocks" in parts
    assert "vae.decoder.mid_block" not in parts
    assert not re.search(SDXL_VAE_OVERFLOW.pattern, "denoiser.unet.up_blocks.0.resnets.0.conv1.weight")
