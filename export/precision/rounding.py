"""A half-precision graph as a backend without half would have to compute it: each result rounded to float16.

ONNX Runtime's CPU backend has few float16 kernels: it widens the rest to float32 and then drops the casts *between* two
widened nodes, so that a chain of half nodes never rounds in between. It so reports up to six times less error than half
precision has (ADR 0011). Here every float16 node is written as float32 with explicit casts around it, which ONNX
Runtime keeps: the error is the honest one, save for the order of sums. A parity bound for fp16 is measured with this.
"""

import onnx_ir as ir

from export.precision.rules import indifferent


def with_every_result_rounded(model: ir.Model) -> ir.Model:
    """A copy of a float16 `model` that computes in float32 and rounds each float16 result; weights are shared."""
    rounded = model.clone()
    graph = rounded.graph
    for node in list(graph):
        if node.op_type == "Cast" or indifferent(node):
            continue
        for slot, value in enumerate(node.inputs):
            if value is not None and value.dtype is ir.DataType.FLOAT16:
                widen = _cast(value, ir.DataType.FLOAT)
                node.prepend(widen)
                node.replace_input_with(slot, widen.outputs[0])
        for value in node.outputs:
            if value.dtype is ir.DataType.FLOAT16:
                uses = list(value.uses())
                narrow = _cast(value, ir.DataType.FLOAT16)
                value.type = ir.TensorType(ir.DataType.FLOAT)  # not .dtype: a clone shares its type objects
                node.append(narrow)
                for user, slot in uses:
                    user.replace_input_with(slot, narrow.outputs[0])
    return rounded


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": to.value})
    node.outputs[0].dtype, node.outputs[0].shape = to, value.shape
    return node
