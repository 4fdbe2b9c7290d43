"""The position table as a function of the grid, against the one that diffusers computes in float64."""

import pytest
import torch
from diffusers.models.embeddings import PatchEmbed, get_2d_sincos_pos_embed

from models.positions import SincosPositions

WIDTH = 48
# latents' size of training, patch size, interpolation scale: PixArt 256, 512, 1024 and 2K px, SANA 4K
PUBLISHED = ((32, 2, 1), (64, 2, 1), (128, 2, 2), (256, 2, 4), (128, 1, 2.0))


def grid(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)


def patches(size: int, patch: int, scale: float) -> PatchEmbed:
    return PatchEmbed(size, size, patch, in_channels=4, embed_dim=WIDTH, interpolation_scale=scale)


@pytest.mark.parametrize(("size", "patch", "scale"), PUBLISHED)
def test_table_is_diffusers_at_every_size(size: int, patch: int, scale: float):
    embed = patches(size, patch, scale)
    positions = SincosPositions(embed)
    trained = size // patch
    torch.testing.assert_close(positions(*grid(trained, trained)), embed.pos_embed, rtol=0, atol=5e-6)
    for rows, columns in ((2, 2), (trained // 2 + 1, 2 * trained), (2 * trained, 3), (trained + 1, trained - 1)):
        expected = get_2d_sincos_pos_embed(
            WIDTH, (rows, columns), base_size=embed.base_size, interpolation_scale=embed.interpolation_scale
        )
        torch.testing.assert_close(positions(*grid(rows, columns))[0], expected.float(), rtol=0, atol=5e-6)


def test_table_added_to_patches_is_the_module_of_diffusers():
    embed = patches(16, 2, 2)
    latents = torch.randn(3, 4, 10, 26)
    with torch.no_grad():
        tokens = embed.proj(latents).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens + SincosPositions(embed)(*grid(5, 13)), embed(latents), rtol=0, atol=5e-6)


def test_rows_are_not_columns():
    table = SincosPositions(patches(16, 2, 1))(*grid(4, 6))
    assert not torch.allclose(table, SincosPositions(patches(16, 2, 1))(*grid(6, 4)), atol=0.1)
