"""Codes and scales: exact where they are, never past what 16 bits hold, by channel, and computed when they are read."""

import numpy as np
import onnx_ir as ir
import pytest

from export.int8.weights import int8_tensors, quantised
from tests.export.lazy_graphs import drawn
from tests.export.precision.graphs import relative_error

BOUND = 0.012  # of normal numbers: steps of 1/90 of the largest of 128


def pair_sums(codes: np.ndarray) -> np.ndarray:
    """The sums of one sign of rows 2i and 2i + 1: [2, K/2, N]."""
    padded = np.concatenate([codes, np.zeros((len(codes) % 2, codes.shape[1]), codes.dtype)]).astype(np.int64)
    pairs = padded.reshape(-1, 2, codes.shape[1])
    return np.stack([np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)])


@pytest.mark.parametrize("shape", [(128, 64), (127, 3), (1, 5), (4096, 1300)])
def test_codes_times_scales_are_the_weight_and_no_pair_overflows(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    codes, scales = quantised(weight)
    assert (codes.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (shape[1],))
    assert (np.abs(codes * scales - weight) / scales).max() < 0.5001  # rounding, and no clipping
    assert 255 * pair_sums(codes).max() <= 32767
    assert pair_sums(codes).max() >= 126, "the range is used"


def test_codes_without_the_bound_of_pairs_would_overflow() -> None:
    """Negative control of the bound: what everyone else writes, |w| / 127."""
    weight = np.random.default_rng(0).standard_normal((128, 64), np.float32)
    codes = np.rint(weight / (np.abs(weight).max(0) / 127)).astype(np.int8)
    assert 255 * pair_sums(codes).max() > 32767


def test_a_scale_for_each_channel_beats_one_for_all() -> None:
    sizes = np.logspace(-2, 0, 64, dtype=np.float32)
    weight = np.random.default_rng(0).standard_normal((128, 64), np.float32) * sizes
    codes, scales = quantised(weight)
    assert relative_error((codes * scales)[:, :8], weight[:, :8]) < BOUND
    one = np.abs(weight).max() / 127
    assert relative_error((np.rint(weight / one) * one)[:, :8], weight[:, :8]) > 5 * BOUND


def test_a_channel_of_zeros_stays_zero() -> None:
    codes, scales = quantised(np.zeros((16, 3), np.float32))
    assert not codes.any()
    np.testing.assert_array_equal(scales, 1)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_weight_shows_in_the_scale(broken: float) -> None:
    """Codes can hold no NaN: the writer refuses the scales."""
    weight = np.ones((16, 3), np.float32)
    weight[4, 1] = broken
    _, scales = quantised(weight)
    assert not np.isfinite(scales[1])
    assert np.isfinite(scales[[0, 2]]).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_tensors_are_computed_when_they_are_read(transposed: bool) -> None:
    reads = []
    stored = drawn(7, (96, 160))

    def load() -> ir.TensorProtocol:
        reads.append(1)
        return ir.Tensor(stored.numpy())

    tensor = ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape([96, 160]))
    factors = np.linspace(0.5, 2, 160 if transposed else 96, dtype=np.float32)
    codes, scales = int8_tensors("w", tensor, transposed, factors)
    assert not reads
    assert (codes.dtype, codes.shape.numpy()) == (ir.DataType.INT8, (160, 96) if transposed else (96, 160))
    matrix = stored.numpy().T if transposed else stored.numpy()
    want = quantised(matrix * factors[:, None])
    np.testing.assert_array_equal(codes.numpy(), want[0])
    np.testing.assert_array_equal(scales.numpy(), want[1])
    assert len(reads) == 2
    codes.numpy()
    assert len(reads) == 3, "nothing is kept"
