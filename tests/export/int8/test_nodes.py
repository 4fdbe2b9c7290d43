"""The written nodes against numpy, what is shared and what is left alone, and what ONNX Runtime makes of them."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from latentc.parity import relative_l2

from export.int8 import layers_of, quantised, write_int8
from tests.export.int8.graphs import WIDTH, block, feed, int8_layer
from tests.export.precision.graphs import matrix, parsed, run

ROUNDING = 1e-6  # of float32, in another order


def written(model: ir.Model, leave: tuple[str, ...] = ()) -> ir.Model:
    write_int8(model, [layer for layer in layers_of(model) if layer.name not in leave], {})
    return model


def count(model: ir.Model) -> dict[str, int]:
    return collections.Counter(node.op_type for node in model.graph)


def test_a_layer_is_numpys_to_rounding() -> None:
    weight, bias, x = matrix(1, WIDTH, WIDTH), matrix(2, WIDTH), matrix(3, 2, 5, WIDTH, scale=1.0)
    model = parsed(
        "p = MatMul(x, w) y = Add(b, p)",
        inputs=f"float[2, 5, {WIDTH}] x",
        output=f"float[2, 5, {WIDTH}] y",
        constants={"w": weight, "b": bias},
    )
    want = int8_layer(x, *quantised(weight), bias)
    assert relative_l2(run(written(model), {"x": x}), want) < ROUNDING
    assert 1e-3 < relative_l2(want, x @ weight + bias) < 2e-2  # it is int8, and no worse
    assert count(model) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    assert set(model.graph.initializers) == {"w_int8", "w_scale", "b"}


@pytest.mark.parametrize("attributes", ["", "<transB = 1>"])
def test_a_gemm_is_a_layer(attributes: str) -> None:
    weight, bias, x = matrix(1, WIDTH, 160), matrix(2, 160), matrix(3, 7, WIDTH, scale=1.0)
    model = parsed(
        f"y = Gemm {attributes} (x, w, b)",
        inputs=f"float[7, {WIDTH}] x",
        output="float[7, 160] y",
        constants={"w": np.ascontiguousarray(weight.T) if attributes else weight, "b": bias},
    )
    assert relative_l2(run(written(model), {"x": x}), int8_layer(x, *quantised(weight), bias)) < ROUNDING


def test_what_several_layers_read_is_quantised_once_and_small_ones_are_left() -> None:
    model = written(block())
    assert count(model)["DynamicQuantizeLinear"] == 2
    assert count(model)["MatMulIntegerToFloat"] == 3
    assert [node.inputs[1].name for node in model.graph if node.op_type == "MatMul"] == ["w_small"]
    assert [value.name for value in model.graph.outputs] == ["prediction"]
    assert {"w_q", "w_k", "w_out", "b_q"} & set(model.graph.initializers) == {"b_q"}


def test_a_layer_that_is_left_out_stays_as_it_was() -> None:
    model = written(block(), leave=("w_q",))
    assert count(model)["MatMulIntegerToFloat"] == 2
    assert "w_q" in model.graph.initializers
    alone = written(block(), leave=("w_q", "w_k", "w_out"))
    np.testing.assert_array_equal(run(alone, feed()), run(block(), feed()))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = MatMul(w, x)", "the weight comes first"),
        ("t = Transpose(x) y = MatMul(t, x)", "no weight"),
        ("y = Gemm <alpha = 0.5> (x, w)", "a scaled product"),
        ("y = Gemm <transA = 1> (x, w)", "the activation is transposed"),
    ],
)
def test_what_is_no_layer(body: str, why: str) -> None:
    constants = {"w": matrix(1, WIDTH, WIDTH)} if "w" in body else {}
    model = parsed(body, inputs=f"float[{WIDTH}, {WIDTH}] x", output=f"float[{WIDTH}, {WIDTH}] y", constants=constants)
    assert layers_of(model) == (), why


def test_a_bias_that_others_read_or_of_another_shape_is_added_as_before() -> None:
    model = parsed(
        "p = MatMul(x, w) y = Add(p, b) z = Tanh(p) prediction = Add(y, z)",
        inputs=f"float[7, {WIDTH}] x",
        output=f"float[7, {WIDTH}] prediction",
        constants={"w": matrix(1, WIDTH, WIDTH), "b": matrix(2, 7, WIDTH)},
    )
    want = run(model, {"x": matrix(3, 7, WIDTH)})
    assert relative_l2(run(written(model), {"x": matrix(3, 7, WIDTH)}), want) < 2e-2
    assert count(model)["Add"] == 2


def test_a_graph_that_is_optimised_computes_the_same(tmp_path: object) -> None:
    """ONNX Runtime joins the quantisation and the product where it can (com.microsoft.DynamicQuantizeMatMul)."""
    model = written(block())
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimised.onnx"
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert relative_l2(session.run(None, feed())[0], run(model, feed())) < ROUNDING
    optimised = collections.Counter(node.op_type for node in onnx.load(f"{tmp_path}/optimised.onnx").graph.node)
    assert (optimised["MatMulIntegerToFloat"], optimised["DynamicQuantizeMatMul"]) == (2, 1)
