"""Batches are a function of (seed, step, rank); shifts and flips do what they say."""

import pytest
import torch

from models.ldm.augment import augmented, batch_at, generator_at, pixels_from_uint8, shifted
from models.ldm.pictures import Pictures


def pictures(count: int = 6, size: int = 8) -> Pictures:
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator_at(3, 0), dtype=torch.uint8)
    return Pictures(
        images, torch.arange(count), torch.ones(count, dtype=torch.bool), tuple("abcdef"[:count]), ("x",) * count
    )


def test_pixels_span_minus_one_to_one():
    assert pixels_from_uint8(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_shift_moves_down_and_right_and_repeats_the_border():
    image = torch.zeros(1, 3, 4, 4)
    image[0, :, 1, 1] = 1.0
    image[0, :, 0, :] = 5.0
    moved = shifted(image, torch.tensor([[1, 2]]), limit=2)
    assert moved.shape == image.shape
    assert moved[0, 0, 2, 3] == 1.0
    assert (moved[0, 0, :2] == 5.0).all()
    assert torch.equal(shifted(image, torch.tensor([[0, 0]]), limit=2), image)


def test_only_allowed_pictures_are_mirrored():
    source = pictures().images
    plain = pixels_from_uint8(source)
    never = augmented(source, torch.zeros(6, dtype=torch.bool), 0, generator_at(0, 0))
    assert torch.equal(never, plain)
    often = [augmented(source, torch.ones(6, dtype=torch.bool), 0, generator_at(0, step)) for step in range(20)]
    kept = torch.stack([(batch == plain).all(dim=(1, 2, 3)) for batch in often]).float().mean()
    assert 0.3 < kept < 0.7
    assert all(((batch == plain) | (batch == plain.flip(-1))).all() for batch in often)


def test_batches_depend_on_seed_step_and_rank_only():
    data = pictures()
    batch = batch_at(data, 4, 1, generator_at(0, 7))
    assert torch.equal(batch, batch_at(data, 4, 1, generator_at(0, 7)))
    for seed, step, rank in ((1, 7, 0), (0, 8, 0), (0, 7, 1)):
        assert not torch.equal(batch, batch_at(data, 4, 1, generator_at(seed, step, rank)))


@pytest.mark.parametrize("shift", [0, 2])
def test_batch_shape_and_range(shift: int):
    batch = batch_at(pictures(), 5, shift, generator_at(0, 0))
    assert batch.shape == (5, 3, 8, 8)
    assert batch.dtype == torch.float32
    assert batch.abs().max() <= 1.0
