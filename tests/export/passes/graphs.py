"""Graphs in ONNX's text format for the tests of the passes, and the five checks' common part."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort


def parsed(text: str, constants: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """`text`: '<opset> inputs => outputs { body }'; e.g. '18 (float[2] x) => (float[2] y) { y = Abs(x) }'."""
    opset, _, rest = text.strip().partition(" ")
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> main {rest}')
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def run(model: ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def text_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def fires(model: ir.Model, graph_pass: ir.passes.PassBase, feed: Mapping[str, np.ndarray], *, atol: float) -> ir.Model:
    """Runs the pass; it must say `modified`, keep every output within `atol`, and find nothing the second time."""
    want = run(model, feed)
    assert graph_pass(model).modified
    for got, expected in zip(run(model, feed), want, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        assert float(np.abs(got.astype(np.float64) - expected).max(initial=0)) <= atol
    assert not graph_pass(model).modified
    return model


def holds_still(model: ir.Model, graph_pass: ir.passes.PassBase) -> None:
    """The pass finds nothing: it says so, and the graph is the same to the byte."""
    before = text_of(model)
    assert not graph_pass(model).modified
    assert text_of(model) == before


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
