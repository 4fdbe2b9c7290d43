"""Solver and guidance arithmetic is what lies outside the weights, found without names."""

import numpy as np

from export.precision.regions import LARGE_CONSTANT, after_weights, before_weights, reads_weight
from tests.export.precision.graphs import fused_step, parsed


def test_before_the_first_and_after_the_last_weight() -> None:
    graph = fused_step().graph
    assert [node.outputs[0].name for node in graph if node in before_weights(graph)] == ["x"]
    assert [node.outputs[0].name for node in graph if node in after_weights(graph)] == ["halves", "prediction"]


def test_a_product_of_two_activations_is_no_weight() -> None:
    graph = parsed("y = MatMul(x, x)", inputs="float[4, 4] x", output="float[4, 4] y", constants={}).graph
    assert not reads_weight(graph[0])
    assert before_weights(graph) == after_weights(graph) == {graph[0]}


def test_a_large_table_is_a_weight_and_a_small_constant_is_not() -> None:
    for rows, expected in ((LARGE_CONSTANT, True), (2, False)):
        graph = parsed(
            "y = Gather(table, at)",
            inputs="int64[3] at",
            output="float[3, 2] y",
            constants={"table": np.zeros((rows, 2), np.float32)},
        ).graph
        assert reads_weight(graph[0]) is expected


def test_a_node_beside_the_stream_is_before_although_it_is_read_late() -> None:
    """1 + scale of a hoisted schedule row: it depends on no weight, wherever it is used."""
    graph = parsed(
        "s = Add(row, one) h = MatMul(x, w) m = Mul(h, s) y = MatMul(m, w)",
        inputs="float[4, 4] x, float[4] row",
        output="float[4, 4] y",
        constants={"one": np.array(1, np.float32), "w": np.eye(4, dtype=np.float32)},
    ).graph
    assert [node.outputs[0].name for node in graph if node in before_weights(graph)] == ["s"]
