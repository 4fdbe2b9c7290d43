"""A row of many values: the loop's graph stays loadable with its weights beside it, and takes every value back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from export.hoist import RowSlot
from export.hoist.packing import MAX_PARTS, unpack_row

FLOAT = ir.DataType.FLOAT


def sum_of_inputs(widths: Sequence[int]) -> tuple[ir.Model, list[RowSlot]]:
    """Σ_i (i + 1)·Σ value_i over inputs [2, widths[i]]: every value counts, and at its own place."""
    values = [ir.Value(name=f"v{i}", shape=ir.Shape([2, w]), type=ir.TensorType(FLOAT)) for i, w in enumerate(widths)]
    nodes, terms, weights, offset = [], [], [], 0
    slots = []
    for index, (value, width) in enumerate(zip(values, widths, strict=True)):
        weight = ir.tensor(np.full((width, 1), index + 1, np.float32), name=f"w{index}")
        weights.append(ir.Value(name=f"w{index}", const_value=weight, shape=ir.Shape([width, 1]), type=value.type))
        nodes.append(ir.node("MatMul", [value, weights[-1]]))
        terms.append(nodes[-1].outputs[0])
        slots.append(RowSlot(value.name or "", "", offset, (width,), FLOAT))
        offset += width
    nodes.append(ir.node("Sum", terms))
    result = nodes[-1].outputs[0]
    result.name, result.shape, result.type = "sum", ir.Shape([2, 1]), ir.TensorType(FLOAT)
    graph = ir.Graph(values, [result], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="denoise")
    return ir.Model(graph, ir_version=10), slots


@pytest.mark.parametrize("parts", [1, 2, MAX_PARTS, MAX_PARTS + 1, 38, 2 * MAX_PARTS, 344, MAX_PARTS**2 + 5])
def test_a_row_of_many_values_loads_with_external_weights(parts: int, tmp_path: Path) -> None:
    widths = [1 + index % 3 for index in range(parts)]
    model, slots = sum_of_inputs(widths)
    unpack_row(model, slots, None, {})
    for node in model.graph:
        if node.op_type == "Split":
            assert len(node.outputs) <= MAX_PARTS
    ir.save(model, tmp_path / "graph.onnx", external_data="graph.weights")
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    row = np.random.default_rng(0).standard_normal((2, sum(widths))).astype(np.float32)
    scale = np.repeat(np.arange(1, parts + 1), widths)
    (found,) = session.run(None, {"schedule_row": row})
    np.testing.assert_allclose(found[:, 0], row @ scale, rtol=1e-4, atol=1e-2)
