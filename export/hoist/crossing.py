"""What it costs that a value crosses into the loop, and why it may not.

Values of the schedule cross as a share of one float32 row; values of the prompt as tensors of their own; inputs of the
graph as what they are.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.hoist.classes import Classes, ValueClass
from export.hoist.cost_model import CostModel, Work
from export.hoist.rows import Kind, Kinds, Stacking
from export.hoist.sizes import Probe, sizes_of_value

# What float32 holds exactly: a row is float32, whatever the value is.
ROW_DTYPES = frozenset((
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL, ir.DataType.INT8,
    ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16,
))  # fmt: skip
ROW_ITEM_BYTES = 4

NO_SCHEDULE_GRAPH = "there is no schedule graph"
NO_PROMPT_GRAPH = "there is no prompt graph"
UNTRIED = frozenset((NO_SCHEDULE_GRAPH, NO_PROMPT_GRAPH))


@dataclass(frozen=True)
class Subject:
    """What is cut: a graph with the classes of its values, their shapes at the cost model's dims, and its costs."""

    model: ir.Model
    static: ir.Model  # the same graph with numbers for shapes
    classes: Classes
    base: Probe
    works: Mapping[ir.Node, Work | str]
    cost_model: CostModel

    def weights_of(self, node: ir.Node) -> Iterator[ir.TensorProtocol]:
        """The tensors that `node` reads, those behind constants that are still to be folded included."""
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                yield value.const_value
            elif value is not None and self.classes[value] is ValueClass.CONSTANT:
                producer = value.producer()
                assert producer is not None
                yield from self.weights_of(producer)

    def num_bytes(self, value: ir.Value) -> int | None:
        """The size of `value` at its own dtype; None if its shape or dtype is unknown."""
        shape = self.base.shapes.get(value.name or "")
        if shape is None or value.dtype is None:
            return None
        return math.ceil(math.prod(shape) * value.dtype.bitwidth / 8)


def row_width(value: ir.Value) -> int | None:
    """The float32 items that `value` has in one row of its leading dim; None if that is no number."""
    if value.shape is None:
        return None
    tail = value.shape.dims[1:]
    return math.prod(dim for dim in tail if isinstance(dim, int)) if all(isinstance(d, int) for d in tail) else None


def crossing_cost(
    value: ir.Value, subject: Subject, stacking: Stacking | None, kinds: Kinds, prompt_graph: bool
) -> int | str:
    """The capacity of `value` into the loop, or why it must not cross."""
    model = subject.cost_model
    num_bytes = subject.num_bytes(value)
    if num_bytes is None:
        return f"the shape of {value.name!r} is unknown"
    if value.shape is None or not value.shape.evaluate(subject.base.dims).is_static():
        return f"the shape of {value.name!r} is known for these sizes ({value.shape}) and not in general"
    if value.is_graph_input():
        per_step = subject.classes[value] is ValueClass.SCHEDULE
        return model.row_crossing(num_bytes) if per_step else model.prompt_crossing(num_bytes)
    if subject.classes[value] is ValueClass.PROMPT:
        # One unit more: a reshape that saves nothing is no reason for a tensor of its own.
        return model.prompt_crossing(num_bytes) + 1 if prompt_graph else NO_PROMPT_GRAPH
    if stacking is None:
        return NO_SCHEDULE_GRAPH
    return _row_cost(value, subject, stacking, kinds)


def _row_cost(value: ir.Value, subject: Subject, stacking: Stacking, kinds: Kinds) -> int | str:
    if (reason := kinds.reason(value)) is not None:
        return reason
    if kinds.of.get(value) is not Kind.ROWS:
        return f"{value.name!r} has no rows"
    if value.dtype not in ROW_DTYPES:
        return f"{value.name!r} is {value.dtype}, which a float32 row does not hold exactly"
    width = row_width(value)
    if width is None:
        return f"{value.name!r} has the shape {value.shape}: its width in a row is not a number"
    if stacking.one.shapes[value.name or ""][0] != stacking.rows:
        return (
            f"{value.name!r} has {value.shape and value.shape[0]} rows a step, which are not those of the other values"
        )
    if not stacking.timestep_only:
        return subject.cost_model.row_crossing(subject.base.shapes[value.name or ""][0] * width * ROW_ITEM_BYTES)
    if sizes_of_value(value, subject.base.dims, subject.base) is None:
        return f"{value.name!r} has the shape {value.shape}: the loop cannot tell how many rows to make of one"
    return subject.cost_model.row_crossing(width * ROW_ITEM_BYTES)
