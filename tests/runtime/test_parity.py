"""The measures: known values, and NaN never passes."""

import math

import numpy as np
import pytest
from latentc.parity import MAX_PSNR_DB, psnr_db, relative_l2
from latentc.schema import Figure


def test_known_values() -> None:
    assert relative_l2([3.0, 4.0], [3.0, 4.0]) == 0.0
    assert relative_l2([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1, rel=1e-12)
    assert psnr_db(np.full(10, 0.1), np.zeros(10)) == pytest.approx(20.0, abs=1e-9)
    assert psnr_db(np.full(10, 25.5), np.zeros(10), peak=255) == pytest.approx(20.0, abs=1e-9)
    assert psnr_db([0.5], [0.5]) == MAX_PSNR_DB


def test_all_zero_output_is_far_from_anything() -> None:
    assert relative_l2(np.zeros(5), np.ones(5)) == 1.0
    assert relative_l2(np.ones(5), np.zeros(5)) == math.inf
    assert relative_l2(np.zeros(5), np.zeros(5)) == 0.0


def test_half_precision_does_not_overflow() -> None:
    assert relative_l2(np.full(4, 6e4, np.float16), np.full(4, 6e4, np.float16)) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("measure", ["relative_l2", "psnr_db"])
def test_nan_and_infinity_are_within_no_bound(measure: str, bad: float) -> None:
    function = {"relative_l2": relative_l2, "psnr_db": psnr_db}[measure]
    for actual, expected in (([1.0, bad], [1.0, 1.0]), ([1.0, 1.0], [1.0, bad]), ([bad], [bad])):
        value = function(actual, expected)
        for bound in (0.0, 1e9, -1e9):
            figure = Figure(tensor="t", measure=measure, value=value, bound=bound, against="x")  # type: ignore[arg-type]
            assert not figure.holds


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[2, 1\]"):
        relative_l2(np.ones(2), np.ones((2, 1)))
    with pytest.raises(ValueError, match="empty"):
        psnr_db([], [])
