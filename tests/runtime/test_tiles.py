"""Decoding by tiles: the same numbers as diffusers' tiled_decode, whatever the sizes, and never more than a tile."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from latentc import tiles
from latentc.tiles import decoded_by_tiles

FACTOR = 8
# H, W, tile: edges of every length, an edge that is one latent, tiles that end where the picture does, one row of tiles
SIZES = ((16, 20, 8), (13, 10, 8), (8, 14, 8), (11, 4, 4), (20, 20, 16))


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """The structure of Stable Diffusion's: four levels, two residual blocks each, attention in the middle."""
    torch.manual_seed(0)
    made = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
    )
    return made.eval()


def diffusers_tiles(vae: AutoencoderKL, latents: np.ndarray, tile: int) -> np.ndarray:
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, FACTOR * tile
    with torch.no_grad():
        return vae.tiled_decode(torch.from_numpy(latents)[None]).sample[0].numpy()


def decoder_of(vae: AutoencoderKL) -> Callable[[np.ndarray], np.ndarray]:
    def decode(latents: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return vae._decode(torch.from_numpy(latents)[None]).sample[0].numpy()

    return decode


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
def test_it_is_what_diffusers_makes(vae: AutoencoderKL, height: int, width: int, tile: int) -> None:
    latents = np.random.default_rng(1).standard_normal((4, height, width), np.float32)
    picture = np.full((3, FACTOR * height, FACTOR * width), np.nan, np.float32)
    decode = decoder_of(vae)
    decoded_by_tiles(decode, latents, tile, picture)
    expected = diffusers_tiles(vae, latents, tile)
    np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-5)
    # Tiles show: were the whole as good, none of this could fail.
    assert np.abs(decode(latents) - expected).max() > 1e-2


def test_without_the_blend_it_would_not_be(vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = np.random.default_rng(1).standard_normal((4, 16, 20), np.float32)
    picture = np.zeros((3, 128, 160), np.float32)
    monkeypatch.setattr(tiles, "_fade", lambda edge, piece: None)
    decoded_by_tiles(decoder_of(vae), latents, 8, picture)
    assert np.abs(picture - diffusers_tiles(vae, latents, 8)).max() > 1e-2


def test_no_tile_is_larger_and_every_latent_is_in_one() -> None:
    latents = np.arange(3 * 13 * 18, dtype=np.float32).reshape(3, 13, 18)
    seen: list[tuple[int, ...]] = []

    def doubled(piece: np.ndarray) -> np.ndarray:
        seen.append(piece.shape)
        return piece.repeat(2, axis=1).repeat(2, axis=2)

    picture = np.full((3, 26, 36), np.nan, np.float32)
    decoded_by_tiles(doubled, latents, 8, picture)
    assert max(seen) == (3, 8, 8)
    assert len(seen) == 3 * 3
    np.testing.assert_allclose(picture, latents.repeat(2, axis=1).repeat(2, axis=2), rtol=1e-6)


def test_a_quarter_of_a_tile_is_whole() -> None:
    with pytest.raises(AssertionError, match="a quarter of a tile"):
        decoded_by_tiles(lambda piece: piece, np.zeros((3, 8, 8), np.float32), 6, np.zeros((3, 8, 8), np.float32))
