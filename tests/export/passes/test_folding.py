"""Constants fold while small; nothing large is read, made or kept twice."""

import numpy as np
import onnx_ir as ir
import pytest

from export.passes.folding import SMALL, fold_constants
from tests.export.passes.graphs import fires, noise, operators, parsed

SCALED = "18 (float[2, 4] x) => (float[2, 4] y) { s = Sqrt(c) y = Mul(x, s) }"


def test_folds_a_small_constant() -> None:
    model = fires(parsed(SCALED, {"c": np.full(4, 9, np.float32)}), fold_constants(), {"x": noise(0, 2, 4)}, atol=0)
    assert operators(model) == ["Mul"]
    assert list(model.graph.initializers) == ["s"]


def test_leaves_a_large_one_unread() -> None:
    size = SMALL + 1
    model = parsed(
        f"18 (float[{size}] x) => (float[{size}] y) {{ s = Sqrt(c) y = Mul(x, s) }}", {"c": np.ones(size, "f4")}
    )

    def unreadable() -> ir.TensorProtocol:
        raise AssertionError("the pass read a large constant")

    constant = model.graph.initializers["c"]
    constant.const_value = ir.LazyTensor(unreadable, dtype=ir.DataType.FLOAT, shape=ir.Shape([size]))
    assert not fold_constants()(model).modified
    assert operators(model) == ["Sqrt", "Mul"]


def test_makes_nothing_large_of_something_small() -> None:
    text = "18 (float[64, 64] x) => (float[64, 64] y) { e = Expand(c, size) y = Mul(x, e) }"
    model = parsed(text, {"c": np.ones(1, np.float32), "size": np.array([64, 64], np.int64)})
    assert not fold_constants()(model).modified
    assert operators(model) == ["Expand", "Mul"]


def test_leaves_a_transposed_weight_to_the_pass_that_keeps_its_name() -> None:
    text = "18 (float[2, 64] x) => (float[2, 32] y) { t = Transpose(w) y = MatMul(x, t) }"
    assert not fold_constants()(parsed(text, {"w": noise(0, 32, 64)})).modified


def test_negative_control_a_wrong_constant_is_seen() -> None:
    class Wrong(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = fold_constants()(model)
            model.graph.initializers["s"].const_value = ir.tensor(np.full(4, 3.01, np.float32), name="s")
            return ir.passes.PassResult(model, bool(result.modified))

    with pytest.raises(AssertionError):
        fires(parsed(SCALED, {"c": np.full(4, 9, np.float32)}), Wrong(), {"x": noise(0, 2, 4)}, atol=1e-3)
