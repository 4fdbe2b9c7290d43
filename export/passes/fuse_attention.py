"""softmax(QKᵀ·scale)·V becomes ONNX Runtime's MultiHeadAttention, which never holds the scores.

    q = Transpose(x [B, N, H, D])            k = Transpose(y [B, M, H, D])         v = Transpose(z [B, M, H, E])
    Reshape(Transpose(MatMul(Softmax(MatMul(q·a, kᵀ·b)), v))) [B, N, H·E]
    = MultiHeadAttention(x [B, N, H·D], y [B, M, H·D], z [B, M, H·E]; num_heads = H, scale = a·b)

On the CPU the operator works block by block with a running softmax (FlashAttention, arXiv 2205.14135): the scores,
H·N·M floats of each row of the batch, are nowhere as a whole. Biases that were added to x, y and z right before are
handed over, and added while the heads are brought together. ADR 0023 has what this saves in memory and time.

What it does not take is declined with a reason: a mask, heads that do not come from a Transpose, half precision (the
CPU operator is float32), a result that others read too. Runs last: no other pass knows the operator.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_MICROSOFT = "com.microsoft"
_TO_HEADS = [0, 2, 1, 3]  # [B, N, H, D] -> [B, H, N, D], and back
_TO_KEYS = [0, 2, 3, 1]  # [B, M, H, D] -> [B, H, D, M]


@dataclass(frozen=True)
class _Found:
    """The values around one attention: [B, N, H, D], [B, M, H, D], [B, M, H, E], and the Reshape behind it."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    scale: float
    result: ir.Node


class FuseAttention(ir.passes.InPlacePass):
    """Fuses every attention that it can; `declined` holds (node, reason) for each Softmax that it could not."""

    def __init__(self) -> None:
        super().__init__()
        self.declined: list[tuple[str, str]] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.declined = []
        modified = False
        for node in list(model.graph):
            if node.op_type != "Softmax" or node.domain:
                continue
            found = _found(node)
            if isinstance(found, str):
                self.declined.append((node.name or "", found))
                continue
            _fuse(model.graph, node, found)
            modified = True
        if modified:
            model.opset_imports.setdefault(_MICROSOFT, 1)
            _remove_unread(model.graph)
        return ir.passes.PassResult(model, modified)


def _found(softmax: ir.Node) -> _Found | str:
    """What surrounds `softmax`, or why it is not fused."""
    scores, weights = softmax.inputs[0], softmax.outputs[0]
    product = _made_by(scores, "MatMul")
    if product is None:
        return "the scores are no product: a mask or a bias is added to them"
    if weights.dtype is not ir.DataType.FLOAT:
        return "it is not in float32"
    rank = len(scores.shape) if scores is not None and scores.shape is not None else 0
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return "it is not over the keys"
    sum_, back, reshape = _only_reader(weights, "MatMul"), None, None
    if sum_ is not None and sum_.inputs[0] is weights:
        back = _only_reader(sum_.outputs[0], "Transpose")
    if back is not None and _permutation(back) == _TO_HEADS:
        reshape = _only_reader(back.outputs[0], "Reshape")
    if sum_ is None or reshape is None or _only_reader(product.outputs[0], "Softmax") is None:
        return "its heads are not put back together right behind it, or are read by others too"
    query, by_query = _unscaled(product.inputs[0])
    key, by_key = _unscaled(product.inputs[1])
    value = sum_.inputs[1]
    tokens = [_heads(query, _TO_HEADS), _heads(key, _TO_KEYS), _heads(value, _TO_HEADS)]
    if any(found is None for found in tokens):
        return "its heads do not come from a Transpose of [batch, tokens, heads, width] with known heads and width"
    q, k, v = (found for found in tokens if found is not None)
    merged = reshape.outputs[0].shape
    if merged is None or len(merged) != 3 or merged[2] != _width(v):
        return "its result is not [batch, tokens, heads * width]"
    return _Found(q, k, v, by_query * by_key, reshape)


def _fuse(graph: ir.Graph, softmax: ir.Node, found: _Found) -> None:
    parts = (found.query, found.key, found.value)
    rows = [_rows_and_bias(part) for part in parts]
    biases = [bias for _, bias in rows]
    together = all(bias is not None for bias in biases)
    before: list[ir.Node] = []
    inputs: list[ir.Value | None] = []
    for part, (source, bias), what in zip(parts, rows, ("query", "key", "value"), strict=True):
        if source is None or (bias is not None and not together):
            inputs.append(_merged_heads(graph, softmax, part, what, before))
        else:
            inputs.append(source)
    if together:
        inputs.append(_joined(graph, softmax, [bias for bias in biases if bias is not None]))
    heads, _ = _heads_and_width(found.query)
    node = ir.node(
        "MultiHeadAttention",
        inputs,
        {"num_heads": heads, "scale": found.scale},
        domain=_MICROSOFT,
        name=f"{softmax.name}_attention",
    )
    node.metadata_props.update(softmax.metadata_props)
    old = found.result.outputs[0]
    node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, found.result, [found.result], [*before, node], [old], node.outputs)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """The value without the constant that it is multiplied by, and that constant."""
    product = _made_by(value, "Mul")
    if product is None:
        return value, 1.0
    for left, right in (product.inputs, reversed(product.inputs)):
        tensor = right.const_value if right is not None else None
        if tensor is not None and tensor.size == 1 and left is not None and left.const_value is None:
            return left, float(tensor.numpy().reshape(()))
    return value, 1.0


def _heads(value: ir.Value | None, permutation: list[int]) -> ir.Value | None:
    """[batch, tokens, heads, width] before the Transpose that made `value`, if heads and width are known."""
    transpose = _made_by(value, "Transpose")
    if transpose is None or _permutation(transpose) != permutation:
        return None
    source = transpose.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4:
        return None
    return source if all(isinstance(dim, int) for dim in list(source.shape)[2:]) else None


def _rows_and_bias(value: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    """[batch, tokens, heads·width] that `value` is a view of, and the bias that was added to it; None if unknown."""
    reshape = _made_by(value, "Reshape")
    rows = reshape.inputs[0] if reshape is not None else None
    if rows is None or rows.shape is None or len(rows.shape) != 3 or rows.shape[2] != _width(value):
        return None, None
    if list(rows.shape)[:2] != _dims(value)[:2] or ir.SymbolicDim(None) in list(rows.shape)[:2]:
        return None, None
    add = _made_by(rows, "Add")
    if add is None or _only_reader(rows, "Reshape") is None:
        return rows, None
    for left, right in (add.inputs, reversed(add.inputs)):
        tensor = right.const_value if right is not None else None
        if left is not None and tensor is not None and list(tensor.shape) == [_width(value)]:
            return (left, right) if _made_by(left, "MatMul") is not None else (rows, None)
    return rows, None


def _merged_heads(graph: ir.Graph, softmax: ir.Node, part: ir.Value, what: str, before: list[ir.Node]) -> ir.Value:
    """[batch, tokens, heads·width] as a new view of `part` [batch, tokens, heads, width]."""
    shape = ir.tensor(np.array([0, 0, _width(part)], np.int64), name=f"{softmax.name}_{what}_shape")
    node = ir.node("Reshape", [part, _initializer(graph, shape)], name=f"{softmax.name}_{what}")
    node.outputs[0].name = f"{softmax.name}_{what}_rows"
    node.outputs[0].type, node.outputs[0].shape = part.type, ir.Shape([*_dims(part)[:2], _width(part)])
    before.append(node)
    return node.outputs[0]


def _joined(graph: ir.Graph, softmax: ir.Node, biases: list[ir.Value]) -> ir.Value:
    arrays = [bias.const_value.numpy() for bias in biases if bias.const_value is not None]
    return _initializer(graph, ir.tensor(np.concatenate(arrays), name=f"{softmax.name}_biases"))


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _remove_unread(graph: ir.Graph) -> None:
    """Nodes whose results nobody reads any more, and their constants."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(value.consumers()))
    return node if node.op_type == op_type and not node.domain else None


def _permutation(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", []))


def _dims(value: ir.Value) -> list[int | ir.SymbolicDim]:
    assert value.shape is not None, "its shape is known (_heads)"
    return list(value.shape)


def _heads_and_width(value: ir.Value) -> tuple[int, int]:
    heads, width = _dims(value)[2:]
    assert isinstance(heads, int), "known (_heads)"
    assert isinstance(width, int), "known (_heads)"
    return heads, width


def _width(value: ir.Value) -> int:
    heads, width = _heads_and_width(value)
    return heads * width
