"""Which nodes are solver and guidance arithmetic: what comes before the first weight, and after the last one.

The trace's own notes (module paths) would say it too, but they are cleared for reproducible exports and a hoisted
graph has lost them. The rule on the graph needs none: the denoiser is what lies between contractions with weights.
A node without any such ancestor still works on the graph's inputs as the solver made them (history, input_row,
timestep, a schedule row, z / scale); a node without any such descendant works on the prediction (guidance, packing).
"""

import onnx_ir as ir

CONTRACTIONS = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"))
LARGE_CONSTANT = 16_384  # elements: above it a constant is stored once, and what reads it computes in its precision


def reads_weight(node: ir.Node) -> bool:
    """A contraction with a constant operand, or any reader of a large constant (an embedding table, positions)."""
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    if node.op_type in CONTRACTIONS:
        return any(constant.dtype is not None and constant.dtype.is_floating_point() for constant in constants)
    return any(constant.const_value.size > LARGE_CONSTANT for constant in constants if constant.const_value is not None)


def before_weights(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that no weight-reading node leads to; `graph` is sorted topologically."""
    after: set[ir.Value] = set()  # values that depend on a weight
    before: set[ir.Node] = set()
    for node in graph:
        if reads_weight(node) or any(value in after for value in node.inputs if value is not None):
            after.update(node.outputs)
        else:
            before.add(node)
    return before


def after_weights(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that lead to no weight-reading node; `graph` is sorted topologically."""
    before: set[ir.Value] = set()  # values that lead to a weight
    after: set[ir.Node] = set()
    for node in reversed(graph):
        if reads_weight(node) or any(value in before for value in node.outputs):
            before.update(value for value in node.inputs if value is not None)
        else:
            after.add(node)
    return after
