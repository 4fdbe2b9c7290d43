"""The memory of values between nodes, counted by hand: what is held together, what is a view, what is written over."""

import numpy as np
import onnx_ir as ir
import pytest

from export.cost import CostError
from export.live_memory import peak_activation_bytes
from tests.export.test_cost import model_of

DIMS = {"batch": 3}
KB = 4 * 256  # float[256]


@pytest.mark.parametrize(
    ("text", "kilobytes"),
    [
        # A chain of matrix products: input and output of the graph, and at its widest the two sides of one node.
        ("{a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, w)}", 2 + 2),
        # An activation function writes over what nobody reads after it, a sum does not ...
        ("{a = MatMul(x, w) b = Tanh(a) c = Softmax(b) y = MatMul(c, w)}", 2 + 1),
        ("{a = MatMul(x, w) b = Add(a, a) y = MatMul(b, w)}", 2 + 2),
        # ... but not over what is read again, nor over the caller's input.
        ("{a = MatMul(x, w) b = Tanh(a) c = Add(a, b) y = MatMul(c, w)}", 2 + 3),
        ("{a = Tanh(x) y = MatMul(a, w)}", 2 + 1),
        # A view is the same memory, alive as long as any of its names.
        ("<int64[1] s = {-1}> {a = MatMul(x, w) v = Reshape(a, s) b = MatMul(x, w) u = Reshape(b, s) c = Add(v, u) "
         "d = Add(c, x) y = MatMul(d, w)}", 2 + 3),
        ("<int64[1] s = {-1}> {a = MatMul(x, w) v = Reshape(a, s) b = MatMul(x, w) c = MatMul(b, w) d = MatMul(c, w) "
         "y = Add(d, v)}", 2 + 3),
        # What nobody reads is made and dropped; what is read late is held until then.
        ("{a, b = Split<axis = 0, num_outputs = 2>(x) y = MatMul(x, w)}", 2 + 1),
        ("{a = MatMul(x, w) b = MatMul(x, w) c = MatMul(x, w) d = Add(b, c) y = Add(a, d)}", 2 + 4),
        ("{y = MatMul(x, w) z = MatMul(y, w)}", 2 + 1),
        # A value that is an output of the graph under another name lies in the caller's buffer.
        ("{a = MatMul(x, w) y = Identity(a)}", 2),
    ],
)  # fmt: skip
def test_counted_by_hand(text: str, kilobytes: int) -> None:
    model = model_of(f"g (float[256] x, float[256, 256] w) => (float[256] y) {text}", w=(256, 256))
    assert peak_activation_bytes(model, {}) == kilobytes * KB


def test_symbolic_dims_and_the_model_is_left_alone() -> None:
    model = model_of(
        "g (float[batch,8] x, float[8,4] w) => (float[batch,4] y) {a = MatMul(x, w) y = Softmax(a)}", w=(8, 4)
    )
    before = ir.to_proto(model).SerializeToString()
    assert peak_activation_bytes(model, DIMS) == 3 * 4 * (8 + 4 + 4)
    assert peak_activation_bytes(model, {"batch": 30}) == 30 * 4 * (8 + 4 + 4)
    assert ir.to_proto(model).SerializeToString() == before
    with pytest.raises(CostError, match="bind batch"):
        peak_activation_bytes(model, {})


def half_model() -> ir.Model:
    model = model_of(
        "g (float[16] x, float16[16,64] w, float16[9,64] t, int64 i) => (float[64] y) "
        "{a = Cast<to = 10>(x) b = MatMul(a, w) r = Gather(t, i) c = Add(b, r) y = Cast<to = 1>(c)}"
    )
    for name, shape in (("w", (16, 64)), ("t", (9, 64))):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(np.zeros(shape, np.float16), name=name)
        model.graph.register_initializer(value)
    return model


def test_half_precision_as_it_is_written_and_as_a_processor_without_it_computes() -> None:
    outside = 4 * 16 + 8 + 4 * 64
    # Widest at the sum: b, r and c.
    assert peak_activation_bytes(half_model(), {}) == outside + 2 * (64 + 64 + 64)
    # Widest at the product: a and b in single, and w, which is converted. The table's one row is not.
    assert peak_activation_bytes(half_model(), {}, half_bytes=4) == outside + 4 * (16 + 64 + 16 * 64)


def test_shape_arithmetic_whose_shape_is_unknown_weighs_nothing() -> None:
    text = "{n = NonZero(x) c = Cast<to = 7>(n) d = Shape(c) e = Cast<to = 1>(d) f = ReduceSum(e) y = Add(x, f)}"
    model = model_of(f"g (float[256] x) => (float[256] y) {text}")
    assert peak_activation_bytes(model, {}) < 2.1 * KB
    floats = model_of(
        "g (float[256] x) => (float[256] y) {n = NonZero(x) c = Cast<to = 1>(n) f = ReduceSum(c) y = Add(x, f)}"
    )
    with pytest.raises(CostError, match="value 'c'"):
        peak_activation_bytes(floats, {})


def test_a_subgraph_is_refused() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]> g (bool c, float[4] x) => (float[4] y) '
        "{y = If(c) <then_branch = t () => (float[4] u) {u = Exp(x)}, else_branch = e () => (float[4] v) {v = Neg(x)}>}"
    )
    with pytest.raises(CostError, match=r"\(If\) has a subgraph"):
        peak_activation_bytes(model, {})
