"""Which operators keep rows of the first axis apart: one rule each, and a reason where there is none.

Contract: a rule may decline what is safe, never accept what mixes. It sees one node, which of its operands have rows on
their first axis and which have none, and shapes; that the result's first axis scales with the rows is known.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.cost import ELEMENT_WISE, REDUCTIONS

Shapes = Mapping[str, tuple[int, ...]]

ALIGNED = (ELEMENT_WISE - {"TopK", "Resize", "Upsample", "Hardmax", "DynamicQuantizeLinear"}) | {
    "Cast", "CastLike", "Dropout", "Identity",
}  # fmt: skip
ORDER_KEEPING = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
BATCHED = frozenset((
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool",
    "GroupNormalization", "InstanceNormalization", "MaxPool", "Resize", "SpaceToDepth",
))  # fmt: skip
SHAPE_OPERANDS = {
    "Expand": (1,), "Pad": (1, 3), "Reshape": (1,), "Resize": (3,), "Slice": (1, 2, 3, 4), "Split": (1,), "Tile": (1,),
}  # fmt: skip
WHOLE_AXIS = 2**31 - 1  # how exporters write "to the end"


def keeps_items_apart(node: ir.Node) -> bool:
    """Whether `node` computes every item by itself, or only orders the same items in another shape."""
    return node.op_type in ALIGNED or node.op_type in ORDER_KEEPING


def why_rows_mix(
    node: ir.Node, value: ir.Value, rows: Collection[int], fixed: Collection[int], shapes: Shapes
) -> str | None:
    """Why the result `value` of `node` mixes the rows of its operands `rows`; None if it does not."""
    result = shapes[value.name or ""]
    rank = len(result)
    match node.op_type:
        case op if op in ALIGNED:
            return _misaligned(node, rows, fixed, result, shapes)
        case "MatMul":
            return _misaligned(node, rows, fixed, result, shapes, matrix=True)
        case "Gemm":
            safe = 0 in rows and 1 not in rows and not node.attributes.get_int("transA", 0)
            return None if safe else "has rows in its weights, or transposes them"
        case "Concat":
            return _along(node.attributes.get_int("axis"), rank)
        case "Gather":
            first = node.attributes.get_int("axis", 0) in (0, -len(_shape(node.inputs[0], shapes)))
            return None if first == (0 not in rows) and len(rows) == 1 else "gathers along the rows"
        case "Einsum":
            return _einsum_mixing(node, rows, fixed)
    if list(rows) != [0]:
        return "has rows in another operand than the first, and no rule for it"
    operand = _shape(node.inputs[0], shapes)
    match node.op_type:
        case op if op in ORDER_KEEPING:
            return None  # memory is in the order of the steps, and the result's first axis scales with them
        case op if op in BATCHED:
            return "normalises over the rows" if node.attributes.get_int("training_mode", 0) else None
        case "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
            return None if perm[0] == 0 else "moves the rows to another axis"
        case "Softmax" | "LogSoftmax" | "LayerNormalization" | "RMSNormalization" | "TopK":
            return _along(node.attributes.get_int("axis", -1), len(operand))
        case "Split":
            return _along(node.attributes.get_int("axis", 0), rank)
        case "CumSum":
            axes = _constant(node.inputs[1])
            return _along(axes[0] if axes else 0, rank)
        case "ArgMax" | "ArgMin":
            return _along(node.attributes.get_int("axis", 0), len(operand))
        case "Expand" | "Tile" | "Pad":
            return None if len(operand) == rank and operand[0] == result[0] else "changes the first axis"
        case "Slice":
            return None if _slices_apart(node, rank) else "slices along the rows"
        case op if op in REDUCTIONS:
            reduced: Sequence[int] | None = node.attributes.get_ints("axes")
            if not reduced and len(node.inputs) > 1:
                reduced = _constant(node.inputs[1])
            return None if reduced and all(axis % len(operand) for axis in reduced) else "reduces over the rows"
    return "is an operator without a rule that says whether it keeps rows apart"


def _along(axis: int, rank: int) -> str | None:
    return None if axis % rank else "works along the rows"


def _misaligned(
    node: ir.Node,
    rows: Collection[int],
    fixed: Collection[int],
    result: tuple[int, ...],
    shapes: Shapes,
    matrix: bool = False,
) -> str | None:
    """Broadcasting: rows must meet rows, or what has no rows; in a matrix product, on an axis of the batch."""
    rank = len(result)
    for slot in (*rows, *fixed):
        shape = _shape(node.inputs[slot], shapes)
        if slot in rows:
            batched = not matrix or len(shape) > 2 or (slot == 0 and len(shape) == 2)
            if len(shape) != rank or shape[0] != result[0] or not batched:
                return "broadcasts the rows to another axis"
        elif len(shape) == rank and shape[0] != 1 and not (matrix and rank == 2 and slot == 1):
            return "meets the rows with a value that has a first axis of its own"
    return None


def _einsum_mixing(node: ir.Node, rows: Collection[int], fixed: Collection[int]) -> str | None:
    """The rows' letter must come first in the result and in each operand that has rows, and nowhere else."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    operands = terms.split(",")
    letter = result[:1]
    first = letter.isalpha() and all(operands[slot][:1] == letter for slot in rows)
    once = all(operand.count(letter) <= 1 for operand in (*operands, result))
    return None if first and once and not any(letter in operands[slot] for slot in fixed) else "sums or moves the rows"


def _slices_apart(node: ir.Node, rank: int) -> bool:
    """Whether a Slice leaves the first axis whole, as x[:, 1:] is traced."""
    operands = [_constant(value) for value in node.inputs[1:] if value is not None]
    if any(operand is None for operand in operands):
        return False
    starts, ends, *rest = (operand for operand in operands if operand is not None)
    axes = rest[0] if rest else tuple(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else (1,) * len(starts)
    return all(
        axis % rank or (start == 0 and end >= WHOLE_AXIS and step == 1)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
    )


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    if value is not None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    return shapes.get((value and value.name) or "", ())


def _constant(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a small constant operand, such as axes."""
    if value is None or value.const_value is None:
        return None
    return tuple(int(item) for item in np.ravel(value.const_value.numpy()))
