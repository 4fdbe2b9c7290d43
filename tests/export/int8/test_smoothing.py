"""Channels made alike: the same function, less error where a channel is large, and only where it costs nothing."""

import numpy as np
import onnx_ir as ir
import pytest
from latentc.parity import relative_l2

from export.int8 import layers_of, smoothing, write_int8
from export.int8.smoothing import MOST, divide, groups_of
from tests.export.int8.graphs import WIDTH, block, feed
from tests.export.precision.graphs import matrix, parsed, run


def divided(model: ir.Model) -> list[str]:
    """Divides every activation that can be by factors of 1 to 2; names of those."""
    factors = np.linspace(1, 2, WIDTH, dtype=np.float32)
    return [x.name or "" for x, group in groups_of(layers_of(model)).items() if divide(model.graph, x, group, factors)]


def test_only_the_scale_and_the_shift_of_a_normalisation_are_divided() -> None:
    model = block()
    assert divided(model) == ["s"]
    added = [node for node in model.graph if (node.name or "").startswith("divide_")]
    assert {node.inputs[0].name for node in added} == {"shift", "row"}
    before, after = (run_of(made, "s") for made in (block(), model))
    np.testing.assert_allclose(after * np.linspace(1, 2, WIDTH, dtype=np.float32), before, rtol=1e-5, atol=1e-6)


def run_of(model: ir.Model, name: str) -> np.ndarray:
    """The value `name`."""
    value = next(v for node in model.graph for v in node.outputs if v.name == name)
    model.graph.outputs[:] = [value]
    return run(model, feed())


def test_an_activation_that_others_read_is_left_alone() -> None:
    model = block()
    value = next(v for node in model.graph for v in node.outputs if v.name == "s")
    model.graph.append(ir.node("Tanh", [value]))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert divided(model) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_constants_of_a_normalisation_are_divided_in_place() -> None:
    model = parsed(
        "s = LayerNormalization(x, gamma, beta) y = MatMul(s, w)",
        inputs=f"float[3, {WIDTH}] x",
        output=f"float[3, {WIDTH}] y",
        constants={"gamma": 1 + matrix(1, WIDTH), "beta": matrix(2, WIDTH), "w": matrix(3, WIDTH, WIDTH)},
    )
    num_nodes = len(model.graph)
    assert divided(model) == ["s"]
    assert len(model.graph) == num_nodes
    assert "s_inverse" not in model.graph.initializers


def test_a_large_channel_spoils_less() -> None:
    want = run(block(outlier=40.0), feed())
    samples = [feed(seed) for seed in (0, 7)]
    factors = smoothing(block(outlier=40.0), samples)
    assert set(factors) == {"s"}
    assert factors["s"].argmax() == 5
    assert factors["s"].max() <= MOST
    errors = []
    for given in ({}, factors):
        model = block(outlier=40.0)
        write_int8(model, layers_of(model), given)
        errors.append(relative_l2(run(model, feed()), want))
    assert errors[1] < 0.5 * errors[0]


def test_a_dead_channel_has_factor_one() -> None:
    weight = matrix(1, WIDTH, WIDTH)
    weight[3] = 0
    factors = smoothing(block(weights={"w_q": weight, "w_k": weight, "gamma": np.ones(WIDTH, np.float32)}), [feed()])
    assert factors["s"][3] == pytest.approx(1)
    assert np.isfinite(factors["s"]).all()


def test_a_layer_that_stays_in_float32_keeps_its_activation() -> None:
    """Else it would read a divided activation with an undivided weight."""
    factors = smoothing(block(), [feed()])
    model = block()
    write_int8(model, [layer for layer in layers_of(model) if layer.name != "w_k"], factors)
    assert not [node for node in model.graph if (node.name or "").startswith("divide_")]
    assert relative_l2(run(model, feed()), run(block(), feed())) < 2e-2
