"""Small graphs for the precision tests, built in code, and a way to run them."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

WIDTH = 16


def parsed(body: str, *, inputs: str, output: str, constants: Mapping[str, np.ndarray], opset: int = 18) -> ir.Model:
    """A model from ONNX's text format (`body`, `inputs`, `output`) with `constants` as initializers."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> main ({inputs}) => ({output}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def run(model: ir.Model, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output, with ONNX Runtime's own rewriting off."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, dict(feed))[0]
    return result


def matrix(seed: int, *shape: int, scale: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)


def fused_step() -> ir.Model:
    """A step in small: history's combination, two layers with a norm and a residual, then guidance.

    history [slots, 4, 16], input_row [slots], guidance_weights [2] -> prediction [2, 16].
    """
    return parsed(
        """
        x = Einsum<equation="s,sbc->bc">(input_row, history)
        h = MatMul(x, w_in)
        n = LayerNormalization<epsilon=0.000001>(h, gamma)
        u = MatMul(n, w_up)
        s = Sigmoid(u)
        a = Mul(u, s)
        d = MatMul(a, w_down)
        r = Add(h, d)
        o = MatMul(r, w_out)
        halves = Reshape(o, two)
        prediction = Einsum<equation="g,gbc->bc">(guidance_weights, halves)
        """,
        inputs="float[s, 4, 16] history, float[s] input_row, float[2] guidance_weights",
        output="float[2, 16] prediction",
        constants={
            "w_in": matrix(1, WIDTH, WIDTH),
            "gamma": np.ones(WIDTH, np.float32),
            "w_up": matrix(2, WIDTH, WIDTH),
            "w_down": matrix(3, WIDTH, WIDTH),
            "w_out": matrix(4, WIDTH, WIDTH),
            "two": np.array([2, 2, WIDTH], np.int64),
        },
    )


def fused_step_feed(seed: int = 0) -> dict[str, np.ndarray]:
    return {
        "history": matrix(seed, 3, 4, WIDTH, scale=1.0),
        "input_row": np.array([0.7, 0.2, 0.1], np.float32),
        "guidance_weights": np.array([4.0, -3.0], np.float32),
    }


def overflowing() -> ir.Model:
    """A residual stream that passes 65504 and comes back through a norm: fine in float32, infinite in half."""
    return parsed(
        """
        h = MatMul(x, w_in)
        big = Mul(h, million)
        twice = Add(big, big)
        n = LayerNormalization(twice, gamma)
        y = MatMul(n, w_out)
        """,
        inputs="float[4, 16] x",
        output="float[4, 16] y",
        constants={
            "w_in": matrix(1, WIDTH, WIDTH),
            "million": np.array(6.0e4, np.float32),
            "gamma": np.ones(WIDTH, np.float32),
            "w_out": matrix(2, WIDTH, WIDTH),
        },
    )


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
