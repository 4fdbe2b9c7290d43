"""Counts of what half cannot hold, against numpy's own conversion; the converted tensor is lazy."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from export.precision.weights import half_tensor, weight_fit


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_counts_are_those_of_the_conversion(dtype: type) -> None:
    draw = np.random.default_rng(0)
    numbers = (draw.normal(size=5000) * 10.0 ** draw.uniform(-10, 7, 5000)).astype(dtype)
    fit = weight_fit("w", numbers.astype(np.float32))
    with np.errstate(over="ignore"):
        half = numbers.astype(np.float32).astype(np.float16)
    # Between 65504 and 65520 half rounds down to 65504: those count as overflow, being out of range.
    assert fit.num_overflow == np.count_nonzero(np.abs(numbers.astype(np.float32)) > 65504)
    assert fit.num_overflow >= np.count_nonzero(np.isinf(half))
    assert fit.num_zero == np.count_nonzero((half == 0) & (numbers != 0))
    assert (
        abs(fit.num_subnormal - np.count_nonzero((np.abs(half) < 2.0**-14) & (half != 0))) <= 2
    )  # rounded up to normal
    assert min(fit.num_overflow, fit.num_zero, fit.num_subnormal) > 100
    assert fit.to_report
    assert not fit.fits


def test_a_plain_weight_is_not_reported() -> None:
    fit = weight_fit("w", np.random.default_rng(0).normal(0, 0.02, 10_000).astype(np.float32))
    assert fit.fits
    assert 0 < fit.small_share < 0.01
    assert not fit.to_report


def test_an_infinite_mask_fits() -> None:
    fit = weight_fit("mask", np.array([0, -np.inf], np.float32))
    assert fit.fits
    assert fit.peak == 0


def test_a_large_weight_is_looked_at_in_a_sample_but_for_its_overflow() -> None:
    numbers = np.random.default_rng(0).normal(0, 0.02, 3 << 20).astype(np.float32)
    numbers[12345] = 7e4
    fit, exact = weight_fit("w", numbers), np.count_nonzero(np.abs(numbers) < 2.0**-14)
    assert fit.num_overflow == 1
    assert fit.peak == np.float32(7e4)
    assert fit.num_subnormal + fit.num_zero == pytest.approx(exact, rel=0.05)


def test_a_half_tensor_is_converted_when_it_is_read() -> None:
    read = []

    def load() -> ir.TensorProtocol:
        read.append(1)
        return ir.tensor(np.array([1.0, 1e-3], np.float32))

    lazy = ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape([2]))
    half = half_tensor("w", lazy)
    assert not read
    np.testing.assert_array_equal(half.numpy(), np.array([1.0, 1e-3], np.float16))
