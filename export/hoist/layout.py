"""What the parts exchange, and how a runtime feeds them.

    schedule graph:  rows          float32 [steps * rows_per_step, width]     step i is one contiguous block
    denoise graph:   schedule_row  float32 [rows_per_step, width]             the block of the step: a pointer, no copy

`rows_per_step` is 1 if the schedule depends on the timestep alone, else the leading dim of the values (such as
batch*guidance_branches). Values lie in a row one after the other, each flattened.
"""

import math
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

ROWS = "rows"
SCHEDULE_ROW = "schedule_row"


class Feed(Enum):
    """What an input of the schedule graph is given, for N steps."""

    STACK = "stack"  # the N values of the steps, one below the other; symbolic dims of 1 each if rows_per_step is 1
    TILE = "tile"  # N copies along the first axis
    ONCE = "once"  # what the request has


@dataclass(frozen=True)
class ScheduleInput:
    """An input of the schedule graph by its name, and how it is fed."""

    name: str
    feed: Feed


@dataclass(frozen=True)
class RowSlot:
    """One value in the row: columns offset ... offset + width."""

    value: str  # its name in the traced graph
    label: str  # the weights that it comes from
    offset: int
    tail: tuple[int, ...]  # its shape behind the leading dim
    dtype: ir.DataType  # in the traced graph; the row is float32

    @property
    def width(self) -> int:
        return math.prod(self.tail)


@dataclass(frozen=True)
class PromptTensor:
    """An output of the prompt graph, which the loop, the schedule graph or both read by the same name."""

    name: str
    value: str  # its name in the traced graph
    label: str
    read_by_loop: bool
    read_by_schedule: bool


@dataclass(frozen=True)
class Layout:
    """The bindings between the parts."""

    width: int  # of a row; 0 without a schedule graph
    rows_per_step: str
    slots: tuple[RowSlot, ...]
    schedule_inputs: tuple[ScheduleInput, ...]
    prompt_tensors: tuple[PromptTensor, ...]


def label_of_node(node: ir.Node) -> str:
    """The module that a node with a weight comes from: a folded weight has lost its name, the bias after it has not."""
    for reader in (node, *node.outputs[0].consumers()):
        for value in reader.inputs:
            if value is not None and value.const_value is not None and "." in (value.name or ""):
                return (value.name or "").rpartition(".")[0]
    return label_of(node.outputs[0])


def label_of(value: ir.Value) -> str:
    """The module that a value comes from, by the nearest named weight behind it; the value's own name if none is.

    Traced weights are called by their path (blocks.0.norm1.linear.weight), values only by number.
    """
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop(0)
        if current in seen:
            continue
        seen.add(current)
        if current.const_value is not None and "." in (current.name or ""):
            return (current.name or "").rpartition(".")[0]
        producer = current.producer()
        if producer is not None:
            pending.extend(read for read in producer.inputs if read is not None)
    return value.name or ""
