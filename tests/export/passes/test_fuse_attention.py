"""Attention as one operator: fires where heads are split and put back, keeps the numbers, says why it declines."""

import numpy as np
import onnx_ir as ir
import pytest

from export.passes.fuse_attention import FuseAttention
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed

HEADS, WIDTH = 2, 4
ALL = HEADS * WIDTH
# Queries of n tokens attend to m others; q, k and v are [b, tokens, heads, width] views of products with a bias.
ATTENTION = f"""18 (float[b, n, {ALL}] x, float[b, m, {ALL}] c) => (float[b, n, {ALL}] y) {{
    qm = MatMul(x, wq) ql = Add(qm, bq) q4 = Reshape(ql, heads) q = Transpose<perm=[0, 2, 1, 3]>(q4)
    km = MatMul(c, wk) kl = Add(bk, km) k4 = Reshape(kl, heads) k = Transpose<perm=[0, 2, 3, 1]>(k4)
    vm = MatMul(c, wv) vl = Add(vm, bv) v4 = Reshape(vl, heads) v = Transpose<perm=[0, 2, 1, 3]>(v4)
    qs = Mul(q, root) ks = Mul(k, root)
    s = MatMul(qs, ks) p = Softmax<axis=-1>(s) o = MatMul(p, v)
    t = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(t, merged) }}"""
FEED = {"x": noise(0, 2, 5, ALL), "c": noise(1, 2, 3, ALL)}


def constants() -> dict[str, np.ndarray]:
    weights = {f"w{name}": noise(i, ALL, ALL) for i, name in enumerate("qkv")}
    biases = {f"b{name}": noise(10 + i, ALL) for i, name in enumerate("qkv")}
    shapes = {"heads": np.array([0, 0, HEADS, WIDTH]), "merged": np.array([0, 0, ALL])}
    return {**weights, **biases, **shapes, "root": np.array(0.7, np.float32)}


def attention(*changes: tuple[str, str], **others: np.ndarray) -> ir.Model:
    text = ATTENTION
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parsed(text, constants() | others)


def test_one_operator_takes_the_products_and_their_biases() -> None:
    model = fires(attention(), FuseAttention(), FEED, atol=2e-6)
    assert operators(model) == ["MatMul", "MatMul", "MatMul", "MultiHeadAttention"]
    (node,) = (node for node in model.graph if node.op_type == "MultiHeadAttention")
    assert node.attributes.get_int("num_heads") == HEADS
    assert node.attributes.get_float("scale") == pytest.approx(0.49)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0].shape == ir.Shape(["b", "n", ALL])
    assert not {"bq", "bk", "bv", "heads", "root"} & set(model.graph.initializers)


def test_without_all_three_biases_they_are_added_before() -> None:
    model = fires(attention(("kl = Add(bk, km) k4 = Reshape(kl", "k4 = Reshape(km")), FuseAttention(), FEED, atol=1e-5)
    assert operators(model).count("Add") == 2
    assert "MultiHeadAttention" in operators(model)


def test_heads_that_something_stands_before_are_brought_together_by_a_view() -> None:
    """Queries that are normalised or turned head by head (SD3.5, FLUX)."""
    changed = attention(("q = Transpose<perm=[0, 2, 1, 3]>(q4)", "qt = Tanh(q4) q = Transpose<perm=[0, 2, 1, 3]>(qt)"))
    model = fires(changed, FuseAttention(), FEED, atol=2e-6)
    assert "MultiHeadAttention" in operators(model)
    assert operators(model).count("Transpose") == 0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("p = Softmax<axis=-1>(s)", "sm = Add(s, root) p = Softmax<axis=-1>(sm)", "a mask"),
        ("p = Softmax<axis=-1>(s)", "p = Softmax<axis=2>(s)", "over the keys"),
        ("k = Transpose<perm=[0, 2, 3, 1]>(k4)", "kn = Tanh(k4) kt = Transpose<perm=[0, 2, 3, 1]>(kn) k = Tanh(kt)",
         "do not come from a Transpose"),
        ("t = Transpose<perm=[0, 2, 1, 3]>(o) y = Reshape(t, merged)", "t = Tanh(o) y = Reshape(t, merged)",
         "not put back together"),
        ("y = Reshape(t, merged)", "y0 = Reshape(t, merged) t2 = Reshape(t, merged) y = Add(y0, t2)",
         "not put back together"),
    ],
)  # fmt: skip
def test_declines_with_a_reason(old: str, new: str, reason: str) -> None:
    graph_pass = FuseAttention()
    holds_still(attention((old, new)), graph_pass)
    assert reason in graph_pass.declined[0][1]


def test_declines_half_precision() -> None:
    text = ATTENTION.replace("float[", "float16[")
    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in constants().items()}
    graph_pass = FuseAttention()
    holds_still(parsed(text, half), graph_pass)
    assert "not in float32" in graph_pass.declined[0][1]


def test_negative_control_another_scale_is_seen() -> None:
    class Wrong(FuseAttention):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = super().call(model)
            for node in model.graph:
                if node.op_type == "MultiHeadAttention":
                    node.attributes["scale"] = ir.AttrFloat32("scale", 0.7)
            return result

    with pytest.raises(AssertionError):
        fires(attention(), Wrong(), FEED, atol=1e-3)
