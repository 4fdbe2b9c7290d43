"""Transposed and cast weights: fires, holds still with a reason, keeps name, laziness and numbers."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from export.passes.weights import FoldWeightViews
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed, run

LINEAR = "18 (float[2, 3] x) => (float[2, 4] y) { t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t) }"
SHARED = "18 (float[2, 3] x) => (float[2, 3] y) { t = Transpose<perm=[1, 0]>(w) a = MatMul(x, t) y = MatMul(a, w) }"


def test_folds_a_transpose_under_the_weights_name() -> None:
    model = fires(parsed(LINEAR, {"w": noise(1, 4, 3)}), FoldWeightViews(), {"x": noise(2, 2, 3)}, atol=0)
    assert operators(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["w"]
    assert list(model.graph.initializers["w"].shape) == [3, 4]
    assert isinstance(model.graph.initializers["w"].const_value, ir.LazyTensor)


def test_reads_no_weight() -> None:
    model = parsed(LINEAR, {"w": noise(1, 4, 3)})

    def unreadable() -> ir.TensorProtocol:
        raise AssertionError("the pass read the weight")

    weight = model.graph.initializers["w"]
    weight.const_value = ir.LazyTensor(unreadable, dtype=ir.DataType.FLOAT, shape=ir.Shape([4, 3]))
    assert FoldWeightViews()(model).modified


def test_folds_two_equal_views_into_one_weight() -> None:
    text = """18 (float[2, 3] x) => (float[2, 4] y) {
        t = Transpose<perm=[1, 0]>(w) u = Transpose(w) a = MatMul(x, t) b = MatMul(x, u) y = Add(a, b) }"""
    model = fires(parsed(text, {"w": noise(1, 4, 3)}), FoldWeightViews(), {"x": noise(2, 2, 3)}, atol=0)
    assert operators(model) == ["MatMul", "MatMul", "Add"]
    assert len(model.graph.initializers) == 1


def test_declines_what_would_duplicate_a_weight_and_says_why() -> None:
    graph_pass = FoldWeightViews()
    holds_still(parsed(SHARED, {"w": noise(1, 3, 3)}), graph_pass)
    assert graph_pass.declined == [("Transpose_0", "w is also read as it is: folding would duplicate it")]


def test_a_cast_bfloat16_weight_becomes_float32() -> None:
    text = "18 (float[2, 3] x) => (float[2, 4] y) { c = Cast<to=1>(w) t = Transpose(c) y = MatMul(x, t) }"
    weight = noise(1, 4, 3).astype(ml_dtypes.bfloat16)
    model = parsed(text.replace("(w)", "(w)"), {"w": weight})
    assert FoldWeightViews()(model).modified
    got = run(model, {"x": noise(2, 2, 3)})[0]
    np.testing.assert_allclose(got, noise(2, 2, 3) @ weight.astype(np.float32).T, rtol=0, atol=1e-6)
    assert model.graph.initializers["w"].dtype is ir.DataType.FLOAT


def test_negative_control_a_wrong_permutation_is_seen() -> None:
    class Wrong(FoldWeightViews):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = super().call(model)
            weight = model.graph.initializers["w"]
            weight.const_value = ir.tensor(weight.const_value.numpy().T.reshape(3, 4).copy(), name="w")
            return result

    with pytest.raises(AssertionError):
        fires(parsed(LINEAR, {"w": noise(1, 4, 3)}), Wrong(), {"x": noise(2, 2, 3)}, atol=1e-6)
