"""The noise is torch's: same seeds, same values, over shapes, successive draws and all seed ranges."""

import numpy as np
import pytest
import torch
from latentc.errors import RequestError
from latentc.noise import MAX_SEED, NormalStream

SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, MAX_SEED]
# around the block of 16, and not multiples of it; the small ones keep half of a pair for the next draw
SHAPES = [(1,), (2,), (3,), (15,), (16,), (17,), (1, 3), (31,), (1, 4, 8, 8), (5,), (7, 3, 5), (4, 4, 16, 16), (1000,)]
TOLERANCE = 1e-6  # torch's vectorised log and cos are not numpy's; values reach 5


@pytest.mark.parametrize("seed", SEEDS)
def test_successive_draws_equal_torch(seed: int) -> None:
    stream, generator = NormalStream(seed), torch.Generator("cpu").manual_seed(seed)
    for shape in SHAPES:
        expected = torch.randn(shape, generator=generator).numpy()
        drawn = stream.draw(shape)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=TOLERANCE, err_msg=f"shape {shape}")


def test_another_seed_is_another_noise() -> None:
    assert np.abs(NormalStream(1).draw((64,)) - NormalStream(2).draw((64,))).max() > 1


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(RequestError, match=r"seed .* is out of range; give 0 to 18446744073709551615"):
        NormalStream(seed)
