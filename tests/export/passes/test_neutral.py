"""x + 0 and the like go; x + 1e-15 stays, whatever a tolerance would say."""

import numpy as np
import pytest

from export.passes.neutral import RemoveNeutralOperands
from tests.export.passes.graphs import fires, holds_still, noise, operators, parsed, run

TEXT = "18 (float[b, 8] x) => (float[b, 8] y) { z = OP(LEFT, RIGHT) y = Abs(z) }"


def _graph(op: str, left: str, right: str) -> str:
    return TEXT.replace("OP", op).replace("LEFT", left).replace("RIGHT", right)


@pytest.mark.parametrize(
    ("op", "left", "right", "number"),
    [("Add", "x", "c", 0), ("Add", "c", "x", 0), ("Sub", "x", "c", 0), ("Mul", "c", "x", 1), ("Div", "x", "c", 1)],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_removes_what_changes_nothing(op: str, left: str, right: str, number: int, shape: tuple[int, ...]) -> None:
    constant = np.full(shape, number, np.float32)
    model = parsed(_graph(op, left, right), {"c": constant})
    fires(model, RemoveNeutralOperands(), {"x": noise(0, 3, 8)}, atol=0)
    assert operators(model) == ["Abs"]


@pytest.mark.parametrize(
    ("op", "left", "right", "constant"),
    [
        ("Add", "x", "c", np.float32(1e-15)),  # keeps a division by zero away
        ("Mul", "x", "c", np.float32(1 + 2e-7)),
        ("Sub", "c", "x", np.float32(0)),
        ("Div", "c", "x", np.float32(1)),
        ("Add", "x", "c", np.zeros((1, 8), np.float32)),
    ],
)
def test_leaves_what_changes_something(op: str, left: str, right: str, constant: np.ndarray) -> None:
    holds_still(parsed(_graph(op, left, right), {"c": np.asarray(constant)}), RemoveNeutralOperands())


def test_leaves_a_constant_that_widens_the_result() -> None:
    text = "18 (float[8] x) => (float[1, 8] y) { z = Add(x, c) y = Abs(z) }"
    holds_still(parsed(text, {"c": np.zeros((1, 1), np.float32)}), RemoveNeutralOperands())


def test_negative_control_a_tolerance_is_seen() -> None:
    """What onnxscript's rule does to 0 / (0 + 1e-15)."""
    text = "18 (float[4] x) => (float[4] y) { s = Add(x, c) y = Div(x, s) }"
    model = parsed(text, {"c": np.array(1e-15, np.float32)})
    holds_still(model, RemoveNeutralOperands())
    model.graph.node(0).replace_input_with(1, None)
    model.graph.node(0).op_type = "Identity"
    model.graph.node(0).resize_inputs(1)
    assert np.isnan(run(model, {"x": np.zeros(4, np.float32)})[0]).all()
