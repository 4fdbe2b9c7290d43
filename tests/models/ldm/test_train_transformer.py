"""Stage 2: adaLN-Zero at the start, labels dropped once for all blocks, cached latents, a bit-exact resumed run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.models.embeddings import LabelEmbedding

from models.ldm.augment import generator_at, pixels_from_uint8
from models.ldm.autoencoder import autoencoder_from_config, reconstructed
from models.ldm.config import NULL_CLASS
from models.ldm.journal import load_state
from models.ldm.latents import CachedLatents, balance_channels, cache_latents, encoded
from models.ldm.train_transformer import denoising_batch, picture_weights, train_transformer
from models.ldm.transformer import noise_schedule, transformer_from_config
from tests.models.ldm import tiny

CLASSES = ("dots", "more, dots")
WEIGHTS = torch.full((8,), 1 / 8)


@pytest.fixture
def cached() -> CachedLatents:
    values = torch.randn(2, 8, 4, 8, 8, generator=generator_at(0, 0))
    return CachedLatents(values, torch.arange(8) % 2, 1.0)


def test_every_block_starts_as_the_identity_and_the_output_as_zero():
    transformer = transformer_from_config(tiny.TRANSFORMER, 4, 8)
    latents, timesteps, labels = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([0, 1, NULL_CLASS])
    assert transformer(latents, timestep=timesteps, class_labels=labels).sample.abs().max() == 0
    hidden = torch.randn(3, 16, 8)
    block = transformer.transformer_blocks[0]
    assert torch.equal(block(hidden, timestep=timesteps, class_labels=labels), hidden)


def test_no_block_drops_labels_by_itself():
    transformer = transformer_from_config(tiny.TRANSFORMER, 4, 8).train()
    embeddings = [module for module in transformer.modules() if isinstance(module, LabelEmbedding)]
    assert len(embeddings) == tiny.TRANSFORMER.layers
    for embedding in embeddings:
        assert embedding.embedding_table.num_embeddings == NULL_CLASS + 1
        found = embedding(torch.zeros(1_000, dtype=torch.int64))
        assert (found == found[0]).all()


def test_labels_are_dropped_at_the_stated_rate(cached: CachedLatents):
    config = replace(tiny.TRANSFORMER, batch=4_000, label_dropout=0.1)
    noisy, target, timesteps, labels = denoising_batch(
        config, cached, WEIGHTS, noise_schedule(config), generator_at(0, 0)
    )
    assert (labels == NULL_CLASS).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert set(labels.tolist()) == {0, 1, NULL_CLASS}
    assert noisy.shape == target.shape == (4_000, 4, 8, 8)
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999


def test_rare_classes_are_drawn_more_often_than_their_share():
    labels = torch.tensor([0] * 9 + [1])
    for balance, share in ((0.0, 0.1), (0.5, 0.25), (1.0, 0.5)):  # 9 pictures of weight 1/3 against one of weight 1
        weights = picture_weights(labels, balance)
        assert weights.sum().item() == pytest.approx(1.0)
        assert weights[9].item() == pytest.approx(share)


def test_target_is_the_velocity(cached: CachedLatents):
    config = tiny.TRANSFORMER
    schedule = noise_schedule(config)
    noisy, target, timesteps, _ = denoising_batch(config, cached, WEIGHTS, schedule, generator_at(0, 1))
    alpha = schedule.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - schedule.alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
    clean = alpha * noisy - sigma * target  # Salimans & Ho, appendix D
    distances = (clean[:, None] - cached.values.flatten(0, 1)).abs().amax(dim=(2, 3, 4)).amin(dim=1)
    assert distances.max() < 1e-4


def test_resumed_run_is_bit_exact(tmp_path: Path, cached: CachedLatents):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    vae = autoencoder_from_config(tiny.AUTOENCODER, 16).eval()
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    one = train_transformer(tiny.TRANSFORMER, cached, CLASSES, vae, whole, accelerator)
    train_transformer(replace(tiny.TRANSFORMER, steps=2, decay_steps=0), cached, CLASSES, vae, halves, accelerator)
    two = train_transformer(tiny.TRANSFORMER, cached, CLASSES, vae, halves, accelerator)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    state = load_state(whole / "state.pt")
    assert state is not None
    assert state["step"] == 4
    assert state["transformer"]["proj_out_2.weight"].abs().max() > 0  # it was zero before the first step
    assert (whole / "grid-000004.png").is_file()


def test_latents_are_cached_at_unit_scale_and_balanced(tmp_path: Path):
    torch.manual_seed(0)
    vae, again = (autoencoder_from_config(tiny.AUTOENCODER, 16).eval() for _ in range(2))
    again.load_state_dict(vae.state_dict())
    pictures = tiny.pictures(8, seed=1)
    pixels = pixels_from_uint8(pictures.images)
    before = reconstructed(vae, pixels)
    first = cache_latents(vae, pictures, 2, 1, 0, tmp_path / "latents.pt")
    assert first.values.shape == (2, 8, 4, 8, 8)
    assert torch.allclose(first.values.mean(dim=(0, 1, 3, 4)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(first.values.std(dim=(0, 1, 3, 4)), torch.ones(4), rtol=1e-3)
    assert not torch.equal(first.values[0], first.values[1])
    # The network itself now speaks of these latents, and says the same pictures.
    assert torch.allclose(encoded(vae, pixels) * first.scaling_factor, first.values[0], atol=1e-4)
    assert torch.allclose(reconstructed(vae, pixels), before, atol=1e-4)
    second = cache_latents(again, pictures, 2, 1, 0, tmp_path / "latents.pt")
    assert torch.equal(first.values, second.values)
    assert first.scaling_factor == second.scaling_factor
    for name, value in vae.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_balancing_keeps_the_spread_of_the_posterior_in_proportion():
    torch.manual_seed(0)
    vae = autoencoder_from_config(tiny.AUTOENCODER, 16).eval()
    pixels = pixels_from_uint8(tiny.pictures(2, seed=1).images)
    before = vae.encode(pixels).latent_dist.std
    gain = torch.tensor([0.5, 1.0, 2.0, 4.0])
    balance_channels(vae, torch.tensor([1.0, 0.0, -1.0, 0.5]), gain)
    assert torch.allclose(vae.encode(pixels).latent_dist.std, before * gain[:, None, None], rtol=1e-4)
