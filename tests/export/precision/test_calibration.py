"""Peaks are what numpy says they are, and the model is as it was afterwards."""

import numpy as np
import onnx_ir as ir
import pytest
from latentc.errors import LatentcError

from export.precision.calibration import measured
from tests.export.precision.graphs import WIDTH, fused_step, fused_step_feed, matrix, overflowing


def test_peaks_are_the_maximum_over_all_samples() -> None:
    samples = [{"x": matrix(seed, 4, WIDTH, scale=1.0)} for seed in (5, 6)]
    found = measured(overflowing(), samples).peaks
    weight = matrix(1, WIDTH, WIDTH)
    assert found["h"] == pytest.approx(max(np.abs(s["x"] @ weight).max() for s in samples), rel=1e-5)
    assert found["x"] == pytest.approx(max(np.abs(s["x"]).max() for s in samples), rel=1e-6)
    assert set(found) == {"x", "h", "big", "twice", "n", "y"}


def test_the_model_is_left_as_it_was() -> None:
    model = fused_step()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    measured(model, [fused_step_feed()])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_an_infinite_value_in_float32_is_an_error_that_names_it() -> None:
    with pytest.raises(LatentcError, match="'big'"):
        measured(overflowing(), [{"x": np.full((4, WIDTH), 3e38 / 6e4, np.float32)}])


def test_without_samples_only_weights_are_looked_at() -> None:
    found = measured(overflowing(), [])
    assert not found.peaks
    assert {fit.name for fit in found.fits} == set(overflowing().graph.initializers)


def test_weights_are_looked_at_in_the_same_way_with_and_without_samples() -> None:
    assert measured(overflowing(), []).fits == measured(overflowing(), [{"x": matrix(5, 4, WIDTH)}]).fits


def test_the_outputs_of_the_last_sample_come_with_the_peaks() -> None:
    samples = [{"x": matrix(seed, 4, WIDTH, scale=1.0)} for seed in (5, 6)]
    outputs = measured(overflowing(), samples).outputs
    assert set(outputs) == {"y"}
    np.testing.assert_array_equal(outputs["y"], measured(overflowing(), samples[1:]).outputs["y"])
