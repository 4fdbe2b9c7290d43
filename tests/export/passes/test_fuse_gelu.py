"""FastGelu for ONNX Runtime: fires on torch's tanh form only, and nowhere else."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from export.passes.fuse_gelu import FuseTanhGelu
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed

GELU = """18 (float[b, 8] x) => (float[b, 8] y) {
    cube = Pow(x, three) c = Mul(k, cube) s = Add(x, c) t = Mul(root, s) h = Tanh(t) p = Add(h, one) q = Mul(half, p)
    y = Mul(x, q) }"""


def _constants(k: float = 0.044715) -> dict[str, np.ndarray]:
    numbers = {"three": 3.0, "k": k, "root": math.sqrt(2 / math.pi), "one": 1.0, "half": 0.5}
    return {name: np.array(number, np.float32) for name, number in numbers.items()}


def test_fuses_with_the_same_numbers() -> None:
    model = fires(parsed(GELU, _constants()), FuseTanhGelu("onnxruntime"), {"x": noise(0, 3, 8)}, atol=1e-6)
    assert operators(model) == ["FastGelu"]
    assert model.opset_imports == {"": 18, "com.microsoft": 1}


def test_leaves_other_constants_and_other_targets() -> None:
    holds_still(parsed(GELU, _constants(k=0.05)), FuseTanhGelu("onnxruntime"))
    holds_still(parsed(GELU, _constants()), FuseTanhGelu("tensorrt-11"))


def test_negative_control_another_activation_is_seen() -> None:
    class Wrong(FuseTanhGelu):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = super().call(model)
            for node in model.graph:
                node.op_type = "QuickGelu"
            return result

    with pytest.raises(AssertionError):
        fires(parsed(GELU, _constants()), Wrong("onnxruntime"), {"x": noise(0, 3, 8)}, atol=1e-3)
