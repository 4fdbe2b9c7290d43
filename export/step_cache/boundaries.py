"""Where a denoiser's residual stream can be cut: between two blocks, at the values that pass from one to the other.

The blocks are found by module paths, as islands are (export/precision/rules.py): `transformer_blocks.7` in the notes of
the trace. What carries no path (a cast, a shape) belongs where it is read first. Of what crosses a boundary only that
counts which depends on the latents: all else is an input of the step, or made of such inputs, and is there on both
sides anyway.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Boundary:
    """Before the block `block`: the values of the residual stream, in the order in which they are made."""

    block: int
    stream: tuple[ir.Value, ...]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a graph in the order in which they run, and which nodes each holds."""

    count: int
    stage: dict[ir.Node, int]  # the block that holds a node; `count` behind the last one
    streamed: frozenset[ir.Node]  # nodes whose outputs depend on the latents

    def boundary(self, block: int) -> Boundary:
        """What passes from the blocks before `block` to it and those behind it."""
        crossing = [
            value
            for node, stage in self.stage.items()
            if stage < block and node in self.streamed
            for value in node.outputs
            if value.is_graph_output() or any(self.stage[user] >= block for user in value.consumers())
        ]
        return Boundary(block, tuple(crossing))


def blocks_of(model: ir.Model, lists: Sequence[str], latents: Sequence[str]) -> Blocks:
    """The blocks of `model`, whose nodes are in a topological order.

    lists: the names of the family's lists of blocks, in the order in which they run ("transformer_blocks").
    latents: the graph's inputs that the residual stream is made of.
    """
    found = {node: place for node in model.graph if (place := _place(node, lists)) is not None}
    numbers = {place: number for number, place in enumerate(sorted(set(found.values())))}
    count = len(numbers)
    stage: dict[ir.Node, int] = {}
    for node in reversed(list(model.graph)):
        users = [stage[user] for value in node.outputs for user in value.consumers()]
        stage[node] = numbers[found[node]] if node in found else min(users, default=count)
    return Blocks(count, {node: stage[node] for node in model.graph}, _streamed(model.graph, latents))


def _place(node: ir.Node, lists: Sequence[str]) -> tuple[int, int] | None:
    """(number of the list, number in it) of the block that a node was traced in."""
    for scope in reversed(re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))):
        for number, name in enumerate(lists):
            match = re.search(rf"(?:^|\.){re.escape(name)}\.(\d+)(?:\.|$)", scope)
            if match:
                return number, int(match[1])
    return None


def _streamed(graph: ir.Graph, latents: Sequence[str]) -> frozenset[ir.Node]:
    """The nodes that depend on the latents' values; what only asks for a shape does not."""
    values = {value for value in graph.inputs if value.name in latents}
    nodes = set()
    for node in graph:
        if node.op_type not in ("Shape", "Size") and any(value in values for value in node.inputs):
            nodes.add(node)
            values.update(node.outputs)
    return frozenset(nodes)
