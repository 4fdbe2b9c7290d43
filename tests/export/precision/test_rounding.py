"""Explicit rounding gives what numpy's float16 gives, element for element; the half graph alone does not."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from export.precision.rounding import with_every_result_rounded
from tests.export.precision.graphs import matrix, parsed, run

_TEXT = {
    "body": """h = Cast<to=10>(x) a = Mul(h, k) b = Add(a, h) c = Mul(b, b) y = Cast<to=1>(c)""",
    "inputs": "float[64] x",
    "output": "float[64] y",
}


def _graph() -> ir.Model:
    return parsed(**_TEXT, constants={"k": np.array(0.3, np.float16)})


def test_every_result_is_rounded() -> None:
    x = matrix(0, 64, scale=1.0)
    h = x.astype(np.float16)
    summed = h * np.float16(0.3) + h
    np.testing.assert_array_equal(
        run(with_every_result_rounded(_graph()), {"x": x}), (summed * summed).astype(np.float32)
    )


def test_overflow_is_infinite() -> None:
    got = run(with_every_result_rounded(_graph()), {"x": np.full(64, 300, np.float32)})
    assert np.isinf(got).all()  # 390² = 152,100


def test_the_graph_that_was_given_is_left_alone() -> None:
    model = _graph()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with_every_result_rounded(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_onnx_runtime_by_itself_does_not_round_in_between() -> None:
    """The reason for the module (1.32). When this fails, ONNX Runtime has the kernels, and the module can go."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(_graph()).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    h = matrix(0, 64, scale=1.0)
    rounded = run(with_every_result_rounded(_graph()), {"x": h})
    assert (session.run(None, {"x": h})[0] != rounded).any()
