"""How much memory the values between the nodes of a graph need at their peak.

Contract: an `ir.Model` and the sizes of its symbolic dims go in, bytes come out; the model is not changed and no weight
is loaded. The nodes run in the order in which they stand. Inputs and outputs of the graph are held all the time, since
they lie in buffers of the caller; every other value from the node that makes it to the last one that reads it.
Initializers are not counted: what of them is in memory is the runtime's business (docs/memory.md).

What ONNX Runtime does on the CPU is followed: a reshape is the same memory under another name, an activation function
writes over an input that nobody reads after it; a sum or a product does not (tried with 1.31.1). Left out are fusions,
which need less, and a kernel's own scratch memory, which is more. So the number is an estimate, no bound.
"""

from collections.abc import Mapping

import onnx_ir as ir

from export.cost import MOVEMENT, CostError, model_with_static_shapes, value_bytes

VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
IN_PLACE = frozenset((
    "Clip", "Elu", "HardSigmoid", "LeakyRelu", "LogSoftmax", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus",
    "Softsign", "Tanh", "ThresholdedRelu",
))  # fmt: skip
_HALVES = frozenset((ir.DataType.FLOAT16, ir.DataType.BFLOAT16))
_SHAPE_ARITHMETIC = frozenset((ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL))


def peak_activation_bytes(model: ir.Model, dims: Mapping[str, int], *, half_bytes: int = 2) -> int:
    """The most bytes that values of `model` hold at one time in one run, with its symbolic dims bound by `dims`.

    half_bytes: what an element of half precision takes. 4 is for processors that compute it in single precision (ONNX
        Runtime on the CPU); there a half-precision weight is converted where it is used, and counts while it is.

    Raises:
        CostError: a dim that `dims` does not bind, a shape that inference does not find, or subgraphs.
    """
    static = model_with_static_shapes(model, dims)
    nodes = list(static.graph)
    for node in nodes:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise CostError(
                f"node {node.name!r} ({node.op_type}) has a subgraph; its memory depends on run-time values"
            )
    owner = _owners(nodes)
    last: dict[ir.Value, int] = {}  # memory: the last node that reads it, under whatever name
    for position, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                last[owner.get(value, value)] = position
    outside = {*static.graph.inputs, *(owner.get(value, value) for value in static.graph.outputs)}
    held = sum(_bytes(value, half_bytes) for value in outside if not value.is_initializer())
    peak = held
    for position, node in enumerate(nodes):
        made = [v for v in node.outputs if owner.get(v, v) is v and v not in outside]
        dying = {
            memory
            for memory in (owner.get(v, v) for v in node.inputs if v is not None)
            if last[memory] == position and memory not in outside and not memory.is_initializer()
        }
        new = sum(_bytes(value, half_bytes) for value in made)
        in_place = node.op_type in IN_PLACE and any(_bytes(v, half_bytes) == new for v in dying)
        peak = max(peak, held + (0 if in_place else new) + _converted_bytes(node, half_bytes))
        unread = sum(_bytes(value, half_bytes) for value in made if last[value] == position)
        held += new - unread - sum(_bytes(value, half_bytes) for value in dying)
    return peak


def _owners(nodes: list[ir.Node]) -> dict[ir.Value, ir.Value]:
    """For each value that is another's memory: the value whose memory it is."""
    owner: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if node.op_type in VIEWS and source is not None:
            owner[node.outputs[0]] = owner.get(source, source)
    return owner


def _converted_bytes(node: ir.Node, half_bytes: int) -> int:
    """The half-precision weights that `node` computes with, in the precision in which it does."""
    if half_bytes <= 2 or node.op_type in MOVEMENT:
        return 0
    weights = {v for v in node.inputs if v is not None and v.is_initializer() and v.dtype in _HALVES}
    return sum(_bytes(value, half_bytes) for value in weights)


def _bytes(value: ir.Value, half_bytes: int) -> int:
    if value.dtype in _HALVES:
        return value_bytes(value, {}) // 2 * half_bytes
    if value.dtype in _SHAPE_ARITHMETIC and not _is_static(value):
        return 0  # a few numbers that say how large something is: no inference follows all of them
    return value_bytes(value, {})


def _is_static(value: ir.Value) -> bool:
    return value.const_value is not None or (value.shape is not None and value.shape.is_static())
