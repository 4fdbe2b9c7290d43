"""Functions written out in primitives: equal to ONNX Runtime's own operators, gone from the graph, left for others."""

import numpy as np
import onnx_ir as ir
import pytest

from export.passes import clean_graph
from export.passes.decompose import DecomposeFunctions
from export.targets import check_target
from tests.export.passes.graphs import holds_still, noise, operators, parsed, run

# name -> (model text, constants, feed, largest |difference| from ONNX Runtime's own operator)
CASES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray], float]] = {
    "Gelu": ("20 (float[b, 8] x) => (float[b, 8] y) { y = Gelu(x) }", {}, {"x": noise(0, 3, 8)}, 2e-6),
    "Gelu tanh": (
        '20 (float[b, 8] x) => (float[b, 8] y) { y = Gelu<approximate="tanh">(x) }',
        {},
        {"x": noise(0, 3, 8)},
        2e-6,
    ),
    "RMSNormalization": (
        "23 (float[b, 8] x) => (float[b, 8] y) { y = RMSNormalization<axis=-1, epsilon=0.000001>(x, s) }",
        {"s": noise(1, 8)},
        {"x": noise(0, 3, 8)},
        2e-6,
    ),
    "RotaryEmbedding": (
        "23 (float[b, 2, 5, 8] x, int64[b, 5] at) => (float[b, 2, 5, 8] y) { y = RotaryEmbedding(x, cos, sin, at) }",
        {"cos": noise(1, 6, 4), "sin": noise(2, 6, 4)},
        {"x": noise(0, 3, 2, 5, 8), "at": np.tile(np.arange(5), (3, 1))},
        2e-6,
    ),
    "Attention": (
        """23 (float[b, 2, 5, 8] q, float[b, 2, 7, 8] k, float[b, 2, 7, 8] v) => (float[b, 2, 5, 8] y) {
            y = Attention(q, k, v) }""",
        {},
        {"q": noise(0, 3, 2, 5, 8), "k": noise(1, 3, 2, 7, 8), "v": noise(2, 3, 2, 7, 8)},
        2e-6,
    ),
    "GroupNormalization": (
        "21 (float[b, 6, 4, 4] x) => (float[b, 6, 4, 4] y) { y = GroupNormalization<num_groups=2>(x, s, t) }",
        {"s": noise(1, 6), "t": noise(2, 6)},
        {"x": noise(0, 3, 6, 4, 4)},
        5e-6,
    ),
}


@pytest.mark.parametrize("target", ["tensorrt-8.6", "tensorrt-10.3"])
@pytest.mark.parametrize("name", CASES)
def test_is_written_out_with_the_same_numbers(name: str, target: str) -> None:
    text, constants, feed, atol = CASES[name]
    want = run(parsed(text, constants), feed)[0]
    model = clean_graph(parsed(text, constants), target)
    assert name.split()[0] not in operators(model)
    assert model.opset_imports == {"": 17 if target == "tensorrt-8.6" else 18}
    assert not model.functions
    assert check_target(model, target) == []
    got = run(model, feed)[0]
    assert float(np.abs(want).max()) > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_says_modified_and_leaves_other_operators() -> None:
    text, constants, _, _ = CASES["Gelu"]
    assert DecomposeFunctions("tensorrt-8.6")(parsed(text, constants)).modified
    holds_still(parsed("20 (float[2] x) => (float[2] y) { y = Erf(x) }"), DecomposeFunctions("tensorrt-8.6"))


def test_onnxruntime_keeps_its_operators() -> None:
    text, constants, _, _ = CASES["Attention"]
    holds_still(parsed(text, constants), DecomposeFunctions("onnxruntime"))


def test_a_large_mean_does_not_cancel() -> None:
    """E[x²] - E[x]² would lose the variance at a mean of 1000: what ONNX's own text of the operator computes."""
    text, constants, _, _ = CASES["GroupNormalization"]
    x = noise(0, 3, 6, 4, 4) + np.float32(1000)
    got = run(clean_graph(parsed(text, constants), "tensorrt-8.6"), {"x": x})[0]
    groups = x.astype(np.float64).reshape(3, 2, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    want = normal.reshape(x.shape) * constants["s"][:, None, None] + constants["t"][:, None, None]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3)


def test_negative_control_the_other_gelu_is_seen() -> None:
    text, constants, feed, atol = CASES["Gelu"]
    want = run(parsed(CASES["Gelu tanh"][0]), feed)[0]
    got = run(clean_graph(parsed(text, constants), "tensorrt-8.6"), feed)[0]
    assert float(np.abs(got - want).max()) > atol


def test_unknown_types_are_an_error_that_names_the_value() -> None:
    text, constants, _, _ = CASES["Gelu"]
    model: ir.Model = parsed(text, constants)
    model.graph.inputs[0].shape = None
    with pytest.raises(ValueError, match="'x'"):
        DecomposeFunctions("tensorrt-8.6")(model)
