"""Which layers stay: those that are spoiled, the fewest that the picture needs, and none without a reason."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from latentc.errors import ParityError
from latentc.parity import psnr_db, relative_l2

from export.int8 import Gate, Int8Report, choose, layers_of, local_errors, quantised, write_int8
from export.int8.choice import LOCAL_BOUND, MARGIN_DB
from tests.export.int8.graphs import WIDTH, block, feed, int8_layer
from tests.export.precision.graphs import matrix, run

LAYERS = {"w_q", "w_k", "w_out"}


def spoiled() -> np.ndarray:
    """A weight whose sum over a channel cancels: int8 loses what is left."""
    weight = matrix(2, WIDTH, WIDTH)
    weight[1::2] = -weight[::2] * (1 + 1e-3 * matrix(9, WIDTH // 2, WIDTH))
    return weight


def alike() -> dict[str, np.ndarray]:
    """Inputs whose neighbours are equal, but for little."""
    given = feed()
    given["x"][..., 1::2] = given["x"][..., ::2]
    return {**given, "row": np.ones_like(given["row"]), "shift": np.zeros_like(given["shift"])}


def gate(model: Callable[[], ir.Model], psnr: float, l2: float = 1.0) -> Gate:
    """A loop of one call whose picture is its prediction."""
    want = run(model(), feed())
    return Gate(lambda graph: run(graph, feed()), want, feed(), want, psnr, l2)


def chosen(model: Callable[[], ir.Model], samples: list[dict[str, np.ndarray]], at: Gate | None) -> Int8Report:
    return choose(model(), samples, {}, local_errors(model(), samples, {}), at)


def test_local_errors_are_those_of_numpys_layer() -> None:
    model = block()
    found = local_errors(model, [feed(), feed(3)], {})
    assert set(found.errors) == LAYERS
    np.testing.assert_array_equal(found.outputs[1]["prediction"], run(block(), feed(3)))
    probe = block()
    probe.graph.outputs[:] = [next(v for n in probe.graph for v in n.outputs if v.name == "s")]
    by_hand = []
    for seed in (0, 3):
        s = run(probe, feed(seed))
        by_hand.append(relative_l2(int8_layer(s, *quantised(matrix(2, WIDTH, WIDTH))), s @ matrix(2, WIDTH, WIDTH)))
    assert found.errors["w_k"] == pytest.approx(max(by_hand), rel=1e-2)


def test_a_layer_that_is_spoiled_stays_also_without_a_trajectory() -> None:
    report = chosen(lambda: block(weights={"w_k": spoiled()}), [alike()], None)
    assert [layer.name for layer in report.kept] == ["w_k"]
    assert report.local["w_k"] > LOCAL_BOUND > report.local["w_q"]
    assert "its own output is off by" in report.kept[0].reason
    assert report.psnr_db is None


def test_nothing_is_kept_and_nothing_ranked_where_the_picture_holds() -> None:
    report = chosen(block, [feed()], gate(block, 20))
    assert report.kept == ()
    assert report.effects == {}
    assert report.psnr_db is not None
    assert report.psnr_db > 20 + MARGIN_DB
    assert report.num_int8 == 3


def test_the_fewest_of_the_worst_are_kept_that_help() -> None:
    everything = chosen(block, [feed()], gate(block, 20)).psnr_db
    assert everything is not None
    at = gate(block, everything - MARGIN_DB + 0.5)
    report = chosen(block, [feed()], at)
    assert set(report.effects) == LAYERS
    assert 1 <= len(report.kept) <= 2
    worst = sorted(report.effects, key=lambda name: -report.effects[name])
    assert {layer.name for layer in report.kept} == set(worst[: len(report.kept)])
    assert report.psnr_db is not None
    assert report.psnr_db >= at.psnr_db + MARGIN_DB
    # What is reported is what was drawn; and one layer less would not have done.
    for kept, holds in ((report.kept, True), (report.kept[:-1], False)):
        model = block()
        names = {layer.name for layer in kept} if holds else set(worst[: len(report.kept) - 1])
        write_int8(model, [layer for layer in layers_of(model) if layer.name not in names], {})
        assert (psnr_db(run(model, feed()), at.picture) >= at.psnr_db + MARGIN_DB) is holds


def test_the_bound_of_the_prediction_counts_too() -> None:
    loose = chosen(block, [feed()], gate(block, 1))
    assert loose.prediction is not None
    report = chosen(block, [feed()], gate(block, 1, loose.prediction))  # 0.9 of it must hold
    assert report.kept
    assert report.prediction is not None
    assert report.prediction < loose.prediction


def test_a_bound_that_no_layer_holds_is_an_error() -> None:
    with pytest.raises(ParityError, match=r"none of the 3 layers can be int8 .* 192 dB"):
        chosen(block, [feed()], gate(block, 190))


def test_the_model_is_left_as_it_was() -> None:
    model = block()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    found = local_errors(model, [feed()], {})
    choose(model, [feed()], {}, found, gate(block, 190 / 5))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
