"""What the cut minimises, in words and numbers.

    a node that stays      the weight bytes that it reads every step  +  its FLOPs / flops_per_byte
    a weight that stays    its bytes, held for the whole loop                                         × held_weight
    a value that crosses   the bytes that the loop reads every step  +  the bytes held for it         × held_weight

Held for a prompt value is one tensor; for a value of the schedule it is one row for every step, which is why a wide
value (timestep × text tokens) can cost more than the weights that it would save. `held_weight=0` counts traffic alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.cost import CostError, NodeCost, cost_of_node

UNITS_PER_BYTE = 1024  # capacities are integers; a FLOP is some 5 units


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

    def stay(self, cost: NodeCost) -> int:
        """A node in the loop, without what is held for its weights."""
        return self.units(cost.weight_bytes_read + cost.flops / self.flops_per_byte)

    def held(self, weight_bytes: int) -> int:
        """A weight that the loop needs."""
        return self.units(weight_bytes * self.held_weight)

    def prompt_crossing(self, num_bytes: int) -> int:
        """A tensor that the prompt graph or the caller hands to the loop."""
        return self.units(num_bytes * (1 + self.held_weight))

    def row_crossing(self, num_bytes: int) -> int:
        """A share of `num_bytes` in the row of every step."""
        return self.units(num_bytes * (1 + self.held_weight * self.steps))


def node_costs(model: ir.Model, static: ir.Model) -> dict[ir.Node, NodeCost | str]:
    """The cost of every node of `model`, or why it has none; `static` is `model` with numbers for shapes."""
    costs: dict[ir.Node, NodeCost | str] = {}
    for node, bound in zip(model.graph, static.graph, strict=True):
        try:
            costs[node] = cost_of_node(bound, {})
        except CostError as error:
            costs[node] = str(error)
    return costs
