"""Folded sizes: static chains, symbolic dims as 0 and -1, no-op Reshape and Expand, and what is declined."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.passes.sizes import FoldSizes
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed, run

_INDEX = {
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "two": np.array([2], np.int64),
    "four": np.array([4], np.int64),
    "eight": np.array([8], np.int64),
    "big": np.array([2**63 - 1], np.int64),
    "first": np.array(0, np.int64),
}


def _constants(*names: str) -> dict[str, np.ndarray]:
    return {name: _INDEX[name] for name in names}


def _folded(model: ir.Model, feed: dict[str, np.ndarray]) -> ir.Model:
    fires(model, FoldSizes(), feed, atol=0)
    RemoveUnusedNodesPass()(model)
    return model


def test_a_chain_of_slices_becomes_a_constant() -> None:
    text = """18 (float[n, 3, 8] x) => (float[a, b, c, d] y) {
        s = Shape(x) h = Slice(s, one, big) r = Concat<axis=0>(zero, h, one) y = Reshape(x, r) }"""
    model = _folded(parsed(text, _constants("one", "big", "zero")), {"x": noise(0, 5, 3, 8)})
    assert operators(model) == ["Reshape"]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [0, 3, 8, 1]


def test_two_symbolic_dims_are_copied_and_inferred() -> None:
    # [b, t, 8] -> [b, t, 2, 4] -> [b, 2, t, 4] -> [b·2, t, 4]: the first dim is new, the second the input's.
    text = """18 (float[b, t, 8] x) => (float[m, t, 4] y) {
        s = Shape(x) b = Gather(s, first) bu = Unsqueeze(b, zero) t = Slice(s, one, two)
        r = Concat<axis=0>(bu, t, two, four) h = Reshape(x, r) p = Transpose<perm=[0, 2, 1, 3]>(h)
        bt = Mul(bu, two) q = Concat<axis=0>(bt, t, four) y = Reshape(p, q) }"""
    model = parsed(text, _constants("first", "zero", "one", "two", "four"))
    fires(model, FoldSizes(), {"x": noise(0, 3, 5, 8)}, atol=0)
    assert model.graph[-1].op_type == "Reshape"
    first = next(node for node in model.graph if node.op_type == "Reshape")
    assert first.inputs[1].const_value.numpy().tolist() == [0, 0, 2, 4]


def test_an_expand_to_the_inputs_own_dims_asks_for_ones() -> None:
    text = """18 (float[b, 4] x) => (float[2, b, 4] y) {
        s = Shape(x) b = Slice(s, zero, one) u = Unsqueeze(x, zero)
        r = Concat<axis=0>(two, b, four) y = Expand(u, r) }"""
    model = _folded(parsed(text, _constants("zero", "one", "two", "four")), {"x": noise(0, 3, 4)})
    assert operators(model) == ["Unsqueeze", "Expand"]
    assert model.graph[1].inputs[1].const_value.numpy().tolist() == [2, 1, 4]


def test_a_reshape_and_an_expand_to_what_is_there_vanish() -> None:
    text = """18 (float[b, 4] x) => (float[b, 4] y) {
        s = Shape(x) r = Reshape(x, s) e = Expand(r, s) y = Abs(e) }"""
    assert operators(_folded(parsed(text), {"x": noise(0, 3, 4)})) == ["Abs"]


def test_declines_two_dims_that_are_nowhere_with_a_reason() -> None:
    text = "18 (float[n] x, int64[2] size) => (float[a, b] y) { y = Reshape(x, size) }"
    graph_pass = FoldSizes()
    holds_still(parsed(text), graph_pass)
    assert graph_pass.declined[0][0] == "Reshape_0"
    assert "neither known nor the input's" in graph_pass.declined[0][1]


def test_holds_still_where_sizes_are_constants() -> None:
    text = "18 (float[b, 8] x) => (float[b, 2, 4] y) { y = Reshape(x, r) }"
    holds_still(parsed(text, {"r": np.array([0, 2, 4], np.int64)}), FoldSizes())


def test_the_batch_that_was_folded_away_may_still_change() -> None:
    text = """18 (float[b, 3, 8] x) => (float[b, 24] y) {
        s = Shape(x) b = Slice(s, zero, one) r = Concat<axis=0>(b, m) y = Reshape(x, r) }"""
    model = parsed(text, {**_constants("zero", "one"), "m": np.array([-1], np.int64)})
    _folded(model, {"x": noise(0, 5, 3, 8)})
    assert operators(model) == ["Reshape"]
    for batch in (1, 2):
        holds_still(model, FoldSizes())
        assert run(model, {"x": noise(0, batch, 3, 8)})[0].shape == (batch, 24)


def test_negative_control_a_wrong_size_is_seen() -> None:
    class Wrong(FoldSizes):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = super().call(model)
            for node in model.graph:
                if node.op_type == "Reshape":
                    value = node.inputs[1]
                    value.const_value = ir.tensor(np.array([8, 3, -1], np.int64), name=value.name)
            return result

    text = """18 (float[b, 3, 8] x) => (float[p, q, r] y) {
        s = Shape(x) h = Slice(s, one, big) r = Concat<axis=0>(h, zero) y = Reshape(x, r) }"""
    with pytest.raises((AssertionError, onnx.shape_inference.InferenceError)):
        fires(
            parsed(text, {**_constants("one", "big"), "zero": np.array([-1], np.int64)}),
            Wrong(),
            {"x": noise(0, 2, 3, 8)},
            atol=1e-6,
        )
