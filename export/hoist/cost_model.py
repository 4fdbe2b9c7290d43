"""What the cut minimises, in words and numbers.

    a node that stays      the weight bytes that it reads, the bytes that it writes, and FLOPs / flops_per_byte
    a weight that stays    its bytes, held for the whole loop, × held_weight
    a value that crosses   the bytes that the loop reads every step
                           of the schedule: and the bytes of the rows of all steps, × held_weight

Data movement (Reshape, Expand, Concat, ...) writes nothing: backends fuse it or make it a view, and to move a broadcast
out of the loop would only make the value that crosses wider. Of the schedule one row is held for every step, which is
why a wide value (timestep × text tokens) can cost more than the weights that it would save. A value of the prompt is
held once, as it would be when the loop computes it. `held_weight=0` counts traffic alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.cost import MOVEMENT, CostError, NodeCost, cost_of_node, value_bytes

UNITS_PER_BYTE = 1024  # capacities are integers; a FLOP is some 5 units


@dataclass(frozen=True)
class Work:
    """What one run of a node costs, and the bytes of its results where they are computed and not only moved."""

    cost: NodeCost
    folded_bytes: int  # of operands that are computed from constants alone
    written_bytes: int


@dataclass(frozen=True)
class CostModel:
    """The machine and the request that the cut is made for; the result is right for any other, only less good.

    `dims` binds every symbolic dim of the graph. `flops_per_byte` is the machine balance: about 200 in half precision
    on an H200 (989 TFLOP/s, 4.8 TB/s), an RTX 4090 (165, 1.0) and an Orin (43, 0.2). `part_bytes` is what a graph of
    its own must earn: an engine call a request and a binding.
    """

    dims: Mapping[str, int]
    steps: int = 28
    flops_per_byte: float = 200.0
    held_weight: float = 1.0
    part_bytes: int = 4096

    def units(self, num_bytes: float) -> int:
        """Bytes as an integer capacity."""
        return round(num_bytes * UNITS_PER_BYTE)

    def stay(self, work: Work) -> int:
        """A node in the loop, without what is held for its weights."""
        return self.units(work.cost.weight_bytes_read + work.folded_bytes) + self.run(work)

    def run(self, work: Work) -> int:
        """One run of a node whose weights are there."""
        return self.units(work.written_bytes + work.cost.flops / self.flops_per_byte)

    def held(self, weight_bytes: int) -> int:
        """A weight that the loop needs."""
        return self.units(weight_bytes * self.held_weight)

    def prompt_crossing(self, num_bytes: int) -> int:
        """A tensor that the prompt graph or the caller hands to the loop."""
        return self.units(num_bytes)

    def row_crossing(self, num_bytes: int) -> int:
        """A share of `num_bytes` in the row of every step."""
        return self.units(num_bytes * (1 + self.held_weight * self.steps))


def works_of(model: ir.Model, static: ir.Model) -> dict[ir.Node, Work | str]:
    """The work of every node of `model`, or why it cannot be stated; `static` is `model` with numbers for shapes."""
    works: dict[ir.Node, Work | str] = {}
    folded: set[ir.Value] = set()  # computed from constants alone: an engine folds it, and then reads it as a weight
    for node, bound in zip(model.graph, static.graph, strict=True):
        read = {value for value in bound.inputs if value is not None}
        if all(value in folded or value.is_initializer() for value in read):
            folded |= set(bound.outputs)
        try:
            written = 0 if node.op_type in MOVEMENT else sum(value_bytes(value, {}) for value in bound.outputs)
            weights = sum(value_bytes(value, {}) for value in read & folded)
            works[node] = Work(cost_of_node(bound, {}), weights, written)
        except CostError as error:
            works[node] = str(error)
    return works
