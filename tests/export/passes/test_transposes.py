"""The keys' Reshape-Transpose-Reshape, and Einsum that only permutes."""

import numpy as np
import onnx_ir as ir
import pytest

from export.passes.attention_keys import MergeReshapedTranspose
from export.passes.einsum_transpose import EinsumToTranspose
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed

KEYS = """18 (float[2, 3, 5, 4] k) => (float[2, 3, 4, 5] y) {
    f = Reshape(k, flat) t = Transpose<perm=[0, 2, 1]>(f) r = Reshape(t, back) y = Abs(r) }"""


def _keys(flat: list[int], back: list[int], text: str = KEYS) -> ir.Model:
    return parsed(text, {"flat": np.array(flat, np.int64), "back": np.array(back, np.int64)})


def test_the_keys_are_transposed_by_one_node() -> None:
    model = fires(_keys([-1, 5, 4], [2, 3, 4, 5]), MergeReshapedTranspose(), {"k": noise(0, 2, 3, 5, 4)}, atol=0)
    transpose = model.graph[model.graph.num_nodes() - 2]
    assert transpose.op_type == "Transpose"
    assert list(transpose.attributes["perm"].as_ints()) == [0, 1, 3, 2]
    assert transpose.inputs[0].name == "k"


@pytest.mark.parametrize(
    ("flat", "back", "reason"),
    [
        ([-1, 4, 5], [2, 3, 5, 4], "regroups elements"),
        ([-1, 5, 4], [3, 2, 4, 5], "are not proven to be"),
        ([-1, 5, 4], [2, 3, 2, 10], "regroups elements"),
    ],
)
def test_declines_what_is_another_order_of_elements(flat: list[int], back: list[int], reason: str) -> None:
    dims = ", ".join(map(str, back))
    graph_pass = MergeReshapedTranspose()
    holds_still(_keys(flat, back, KEYS.replace("float[2, 3, 4, 5] y", f"float[{dims}] y")), graph_pass)
    assert reason in graph_pass.declined[0][1]


def test_declines_unknown_leading_dims() -> None:
    text = KEYS.replace("float[2, 3, 5, 4] k", "float[n, 3, 5, 4] k").replace(
        "float[2, 3, 4, 5] y", "float[m, 3, 4, 5] y"
    )
    graph_pass = MergeReshapedTranspose()
    holds_still(_keys([-1, 5, 4], [-1, 3, 4, 5], text), graph_pass)
    assert "are not proven to be" in graph_pass.declined[0][1]


def test_a_permuting_einsum_is_a_transpose() -> None:
    text = '18 (float[2, 3, 4] x) => (float[4, 2, 3] y) { y = Einsum<equation="abc -> cab">(x) }'
    model = fires(parsed(text), EinsumToTranspose(), {"x": noise(0, 2, 3, 4)}, atol=0)
    assert operators(model) == ["Transpose"]


@pytest.mark.parametrize(("equation", "dims"), [("abc->ab", "2, 3"), ("aab->ab", "2, 3"), ("ab,bc->ac", "2, 2")])
def test_any_other_einsum_is_left(equation: str, dims: str) -> None:
    shapes = {"abc->ab": "2, 3, 4", "aab->ab": "2, 2, 3", "ab,bc->ac": "2, 2"}[equation]
    arguments = "x, x" if "," in equation else "x"
    text = f'18 (float[{shapes}] x) => (float[{dims}] y) {{ y = Einsum<equation="{equation}">({arguments}) }}'
    holds_still(parsed(text), EinsumToTranspose())


def test_negative_control_another_permutation_is_seen() -> None:
    class Wrong(EinsumToTranspose):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            result = super().call(model)
            for node in model.graph:
                node.attributes["perm"] = ir.AttrInt64s("perm", [1, 0, 2])
            return result

    text = '18 (float[3, 3, 3] x) => (float[3, 3, 3] y) { y = Einsum<equation="abc -> cab">(x) }'
    with pytest.raises(AssertionError):
        fires(parsed(text), Wrong(), {"x": noise(0, 3, 3, 3)}, atol=1e-6)
