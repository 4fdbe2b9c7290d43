"""Whether steps stay apart when they are stacked along the leading dim: the structural half of the proof.

A value is ROWS if the graph, run on N stacked steps, gives the N results one below the other; FIXED if it gives what
one step gives. What is neither mixes steps, or is not known not to, and stays in the loop with the reason. The other
half is numerical: export.hoist.row_check.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from export.cost import ELEMENT_WISE, REDUCTIONS
from export.hoist.classes import Classes, ValueClass
from export.hoist.sizes import Probe

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


class Kind(Enum):
    """What becomes of a value when N steps are stacked."""

    ROWS = "N results, one below the other"
    FIXED = "the result of one step"


@dataclass(frozen=True)
class Stacking:
    """One way to run all steps at once, and the shapes that it gives."""

    step: Mapping[str, int]  # the symbolic dims of a step as the loop sees it
    one: Probe  # of one step as the schedule graph sees it
    all: Probe
    num_steps: int
    rows: int  # rows of one step, in the run `one`
    leading: str  # the symbol that the steps are stacked along
    symbols: frozenset[str]  # those whose size in the stacked run is not that of a step
    timestep_only: bool  # one row a step, without the prompt: the rows of a step are equal

    def dims_of_all(self, dims: Mapping[str, int], num_steps: int) -> dict[str, int]:
        """The symbolic dims of the schedule graph that runs `num_steps` steps, where `dims` are those of a step."""
        single = {**dims, **dict.fromkeys(self.symbols, 1)} if self.timestep_only else dict(dims)
        return {**single, self.leading: single[self.leading] * num_steps}

    def scaled(self, value: ir.Value) -> Kind | None:
        """The kind that the shapes of `value` allow."""
        one, all_ = self.one.shapes.get(value.name or ""), self.all.shapes.get(value.name or "")
        if one is None or all_ is None:
            return None
        if one == all_:
            return Kind.FIXED
        return Kind.ROWS if one and all_ == (one[0] * self.num_steps, *one[1:]) else None


@dataclass(frozen=True)
class Kinds:
    """The kind of every value up to class schedule, or the reason why it has none."""

    of: Mapping[ir.Value, Kind | str]
    copied: Mapping[ir.Value, str]  # prompt values that must be computed outside and copied for every step, and why

    def reason(self, value: ir.Value) -> str | None:
        """Why `value` cannot be computed for all steps at once, if it cannot."""
        kind = self.of.get(value, Kind.FIXED)
        return kind if isinstance(kind, str) else None


def kinds_of(model: ir.Model, classes: Classes, stacking: Stacking) -> Kinds:
    """What becomes of every value up to class schedule when steps are stacked."""
    kinds: dict[ir.Value, Kind | str] = {}
    copied: dict[ir.Value, str] = {}
    for value in model.graph.inputs:
        if classes[value] is ValueClass.SCHEDULE:
            stacks = stacking.scaled(value) is Kind.ROWS
            kinds[value] = Kind.ROWS if stacks else f"{value.name!r} has no leading symbolic dim to stack steps along"
        elif classes[value] is ValueClass.PROMPT:
            kinds[value] = _tiled(value, stacking)
    for node in model.graph:
        if classes.of_node(node) is ValueClass.LOOP:
            continue
        for value in node.outputs:
            kind = _kind_of_result(node, value, kinds, classes, stacking)
            if isinstance(kind, str) and classes[value] is ValueClass.PROMPT:
                copied[value] = kind
                kind = _tiled(value, stacking)
            kinds[value] = kind
    return Kinds(kinds, copied)


def _tiled(value: ir.Value, stacking: Stacking) -> Kind | str:
    if stacking.timestep_only:
        return f"{value.name!r} depends on the prompt"
    return stacking.scaled(value) or f"{value.name!r} has the rows of a step on another axis than the first"


def _kind_of_result(
    node: ir.Node,
    value: ir.Value,
    kinds: Mapping[ir.Value, Kind | str],
    classes: Classes,
    stacking: Stacking,
) -> Kind | str:
    if value in classes.sizes:
        return Kind.FIXED
    name = f"{node.op_type} {node.name!r}"
    operands: dict[int, Kind] = {}
    for slot, read in enumerate(node.inputs):
        if read is None:
            continue
        if read in classes.sizes and stacking.timestep_only and read not in classes.timestep_only:
            return f"{name} needs a size that only the prompt has"
        if slot in SHAPE_OPERANDS.get(node.op_type, ()):
            continue  # what it does is seen in the shape of the result
        kind = Kind.FIXED if read in classes.sizes else kinds.get(read, Kind.FIXED)
        if stacking.symbols & classes.sizes.get(read, frozenset()):
            return f"{name} computes with a size that changes when steps are stacked"
        if isinstance(kind, str):
            return kind
        operands[slot] = kind
    shape = stacking.scaled(value)
    if Kind.ROWS not in operands.values():
        return Kind.FIXED if shape is Kind.FIXED else f"{name} takes the number of rows from a shape, not from a value"
    if shape is not Kind.ROWS:
        return f"{name} does not keep the rows on the first axis"
    reason = _mixing(node, value, operands, stacking.all.shapes)
    return Kind.ROWS if reason is None else f"{name} {reason}"


def _mixing(
    node: ir.Node, value: ir.Value, operands: Mapping[int, Kind], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Why `node` mixes the rows of its operands; None if it does not. Its result is known to scale with them."""
    rows = [slot for slot, kind in operands.items() if kind is Kind.ROWS]
    fixed = [slot for slot, kind in operands.items() if kind is Kind.FIXED]
    result = shapes[value.name or ""]
    shape = {slot: _shape(node.inputs[slot], shapes) for slot in rows}
    axis = node.attributes.get_int("axis", -1)
    match node.op_type:
        case op if op in ALIGNED:
            return _misaligned(node, rows, fixed, len(result), result[0], shapes)
        case op if op in ORDER_KEEPING:
            return None  # memory is in the order of the steps, and the result's first axis scales with them
        case op if op in BATCHED or (op == "Gemm" and not node.attributes.get_int("transA", 0)):
            others = [slot for slot in rows if slot != 0 and not (op == "Gemm" and slot == 2)]
            return "has rows as its weights" if others or 0 not in rows else None
        case "MatMul":
            return _misaligned(node, rows, fixed, len(result), result[0], shapes, matrix=True)
        case "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(len(result)))))
            return None if perm[0] == 0 else "moves the rows to another axis"
        case (
            "Concat"
            | "Split"
            | "Softmax"
            | "LogSoftmax"
            | "LayerNormalization"
            | "RMSNormalization"
            | "CumSum"
            | "TopK"
        ):
            if node.op_type == "CumSum":
                axis = next(iter(_constant(node.inputs[1]) or [0]))
            elif node.op_type == "Split":
                axis = node.attributes.get_int("axis", 0)
            return "works along the rows" if axis % len(result) == 0 else None
        case "Gather":
            first = node.attributes.get_int("axis", 0) in (0, -len(_shape(node.inputs[0], shapes)))
            return None if first == (0 not in rows) and len(rows) == 1 else "gathers along the rows"
        case "Expand" | "Tile" | "Pad":
            same = len(shape[0]) == len(result) and shape[0][0] == result[0]
            return None if same else "changes the first axis"
        case "Slice":
            return None if _slices_apart(node, len(result)) else "slices along the rows"
        case op if op in REDUCTIONS:
            axes: Sequence[int] | None = node.attributes.get_ints("axes") or (
                _constant(node.inputs[1]) if len(node.inputs) > 1 else None
            )
            if op in ("ArgMax", "ArgMin"):
                axes = (node.attributes.get_int("axis", 0),)
            return None if axes and all(axis % len(shape[0]) for axis in axes) else "reduces over the rows"
        case "Einsum":
            return _einsum_mixing(node, rows, fixed)
    return "is an operator without a rule that says whether it keeps rows apart"


def _misaligned(
    node: ir.Node,
    rows: Iterable[int],
    fixed: Iterable[int],
    rank: int,
    length: int,
    shapes: Mapping[str, tuple[int, ...]],
    matrix: bool = False,
) -> str | None:
    """Broadcasting: rows must meet rows, or what has no rows; in a matrix product, on an axis of the batch."""
    for slot in (*rows, *fixed):
        shape = _shape(node.inputs[slot], shapes)
        if slot in rows:
            batched = not matrix or len(shape) > 2 or (slot == 0 and len(shape) == 2)
            if len(shape) != rank or shape[0] != length or not batched:
                return "broadcasts the rows to another axis"
        elif len(shape) == rank and shape[0] != 1 and not (matrix and rank == 2 and slot == 1):
            return "meets the rows with a value that has a first axis of its own"
    return None


def _einsum_mixing(node: ir.Node, rows: Iterable[int], fixed: Iterable[int]) -> str | None:
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    operands = terms.split(",")
    letter = result[:1]
    apart = letter.isalpha() and all(operands[slot][:1] == letter for slot in rows)
    return None if apart and not any(letter in operands[slot] for slot in fixed) else "sums or moves the rows"


def _slices_apart(node: ir.Node, rank: int) -> bool:
    """Whether a Slice leaves the first axis whole, as x[:, 1:] is traced."""
    starts, ends, axes, steps = (
        _constant(node.inputs[slot]) if slot < len(node.inputs) else None for slot in range(1, 5)
    )
    if starts is None or ends is None:
        return False
    for index, axis in enumerate(axes or range(len(starts))):
        whole = starts[index] == 0 and ends[index] >= WHOLE_AXIS and (steps is None or steps[index] == 1)
        if axis % rank == 0 and not whole:
            return False
    return True


def _shape(value: ir.Value | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if value is not None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    return shapes.get((value and value.name) or "", ())


def _constant(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a small constant operand, such as axes."""
    if value is None or value.const_value is None:
        return None
    return tuple(int(item) for item in np.ravel(value.const_value.numpy()))
