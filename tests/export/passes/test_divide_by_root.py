"""x · 1/√v as x / √v, and what ONNX Runtime makes of it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from export.passes.divide_by_root import DivideByRoot
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed

RMS = """18 (float[b, 8] x) => (float[b, 8] y) {
    p = Pow(x, two) m = ReduceMean<keepdims=1>(p, last) e = Add(m, eps) s = Sqrt(e) r = Reciprocal(s)
    n = Mul(x, r) y = Mul(n, w) }"""
CONSTANTS = {
    "two": np.array(2.0, np.float32), "last": np.array([-1]), "eps": np.array(1e-6, np.float32), "w": noise(3, 8),
}  # fmt: skip


def test_divides_and_is_then_one_normalisation_in_onnx_runtime(tmp_path: Path) -> None:
    def at_load(model: ir.Model) -> list[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        return [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]

    model = parsed(RMS, CONSTANTS)
    assert "SimplifiedLayerNormalization" not in at_load(model)  # else this pass is not needed any more
    fires(model, DivideByRoot(), {"x": noise(0, 3, 8)}, atol=1e-6)
    assert operators(model) == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]
    assert at_load(model) == ["SimplifiedLayerNormalization"]


def test_leaves_a_reciprocal_that_others_read_too() -> None:
    holds_still(parsed(RMS.replace("n = Mul(x, r)", "a = Add(x, r) n = Mul(a, r)"), CONSTANTS), DivideByRoot())


def test_leaves_a_reciprocal_of_something_else() -> None:
    holds_still(parsed(RMS.replace("s = Sqrt(e)", "s = Exp(e)"), CONSTANTS), DivideByRoot())


def test_leaves_a_square_of_the_reciprocal() -> None:
    holds_still(parsed(RMS.replace("n = Mul(x, r)", "rr = Mul(r, r) n = Mul(x, rr)"), CONSTANTS), DivideByRoot())
