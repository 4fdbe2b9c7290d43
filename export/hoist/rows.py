"""Whether steps stay apart when they are stacked along the leading dim: the structural half of the proof.

A value is ROWS if the graph, run on N stacked steps, gives the N results one below the other; FIXED if it gives what
one step gives. What is neither mixes steps, or is not known not to, and stays in the loop with the reason. The other
half is numerical: export.hoist.row_check.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from export.hoist.classes import Classes, ValueClass
from export.hoist.row_rules import SHAPE_OPERANDS, keeps_items_apart, why_rows_mix
from export.hoist.sizes import Probe


class Kind(Enum):
    """What becomes of a value when N steps are stacked."""

    ROWS = "N results, one below the other"
    FIXED = "the result of one step"


@dataclass(frozen=True)
class Stacking:
    """One way to run all steps at once, and the shapes that it gives."""

    step: Probe  # of a step as the loop sees it
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

    def varies_behind_the_first_axis(self, value: ir.Value | None) -> bool:
        """Whether `value` has other sizes behind its first axis in a real step than in the stacked run."""
        name = (value and value.name) or ""
        return self.step.shapes.get(name, ())[1:] != self.one.shapes.get(name, ())[1:]

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
    rows = [slot for slot, kind in operands.items() if kind is Kind.ROWS]
    fixed = [slot for slot, kind in operands.items() if kind is Kind.FIXED]
    if stacking.timestep_only and not keeps_items_apart(node):
        for slot in rows:
            if stacking.varies_behind_the_first_axis(node.inputs[slot]):
                return f"{name} works along an axis that is a single item when steps are stacked"
    reason = why_rows_mix(node, value, rows, fixed, stacking.all.shapes)
    return Kind.ROWS if reason is None else f"{name} {reason}"
