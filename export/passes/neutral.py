"""Removes x + 0, x - 0, x · 1 and x / 1, where the constant is exactly that.

onnxscript 0.7.2 has rules for them that take a constant within 1e-8 of 0 (1e-5 of 1) for it. DC-AE's linear
attention divides by a sum + 1e-15 that keeps 0 / 0 away: without it a decoder returned NaN.
"""

import onnx_ir as ir

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_COMMUTES = ("Add", "Mul")


class RemoveNeutralOperands(ir.passes.InPlacePass):
    """Replaces the result by the operand that is left, where the constant does not widen its shape."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            kept = _kept(node)
            if kept is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(kept)
                model.graph.remove(node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)


def _kept(node: ir.Node) -> ir.Value | None:
    """The operand that `node` returns as it is, if it does."""
    if node.domain != "" or node.op_type not in _NEUTRAL:
        return None
    left, right = node.inputs
    pairs = [(left, right), *([(right, left)] if node.op_type in _COMMUTES else [])]
    for kept, constant in pairs:
        if kept is not None and constant is not None and _is(constant, _NEUTRAL[node.op_type], kept):
            return kept
    return None


def _is(constant: ir.Value, number: float, kept: ir.Value) -> bool:
    tensor = constant.const_value
    if tensor is None or tensor.size != 1 or kept.const_value is not None:
        return False
    rank = len(kept.shape) if kept.shape is not None else 0
    return len(tensor.shape) <= rank and float(tensor.numpy().reshape(())) == number
