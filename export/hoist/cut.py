"""The cheapest split of a graph in two: what leaves, and what stays.

Contract: numbers in, a set out; it knows no ONNX. A node may leave only if everything that it reads has left. It costs
something to let a node stay, to let a value cross from what left to what stays (once, however many nodes read it), and
to keep a weight that any staying node uses. networkx finds the minimum cut; costs are integers, so that it is exact. Of
several minimum cuts the one with the fewest staying nodes is taken, which is unique.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

LEAVES, STAYS = "leaves", "stays"
_Vertex = str | tuple[str, int]


@dataclass(frozen=True)
class Crossing:
    """A value that may cross. `producer` is None for what is there in any case, such as an input."""

    producer: int | None
    readers: tuple[int, ...]
    cost: int | None  # None: it must not cross
    read_by_rest: bool = False  # something reads it that stays in any case


@dataclass(frozen=True)
class Shared:
    """Something that is kept as long as one of its users stays."""

    users: tuple[int, ...]
    cost: int


@dataclass(frozen=True)
class CutProblem:
    """Nodes are 0 ... n-1; `stay[i]` is None for a node that must leave."""

    stay: tuple[int | None, ...]
    pinned: frozenset[int]  # nodes that stay in any case
    crossings: tuple[Crossing, ...]
    shared: tuple[Shared, ...] = ()


def minimum_cut(problem: CutProblem) -> frozenset[int] | None:
    """The nodes that leave; None if no split is legal."""
    graph: nx.DiGraph[_Vertex] = nx.DiGraph()
    graph.add_nodes_from((LEAVES, STAYS))
    for node, cost in enumerate(problem.stay):
        _edge(graph, LEAVES, ("node", node), cost)
    for node in sorted(problem.pinned):
        _edge(graph, ("node", node), STAYS, None)
    for index, crossing in enumerate(problem.crossings):
        hub = ("value", index)
        producer: _Vertex = LEAVES if crossing.producer is None else ("node", crossing.producer)
        _edge(graph, producer, hub, crossing.cost)
        for reader in crossing.readers:
            _edge(graph, hub, ("node", reader), None)  # if a reader stays, the value crosses
            if crossing.producer is not None:
                _edge(graph, ("node", reader), producer, None)  # if a reader leaves, the producer has left
        if crossing.read_by_rest:
            _edge(graph, hub, STAYS, None)
    for index, shared in enumerate(problem.shared):
        _edge(graph, LEAVES, ("shared", index), shared.cost)
        for user in shared.users:
            _edge(graph, ("shared", index), ("node", user), None)
    try:
        _, (_, staying) = nx.minimum_cut(graph, LEAVES, STAYS)
    except nx.NetworkXUnbounded:
        return None
    return frozenset(node for node in range(len(problem.stay)) if ("node", node) not in staying)


def largest_legal(problem: CutProblem) -> frozenset[int]:
    """All nodes that can leave at once, whatever it costs. Legal sets are closed under union, so there is a largest."""
    left = set(range(len(problem.stay))) - problem.pinned
    while True:
        held = set()
        for crossing in problem.crossings:
            if crossing.producer is not None and crossing.producer not in left:
                held |= left.intersection(crossing.readers)
            elif crossing.cost is None and (crossing.read_by_rest or not left.issuperset(crossing.readers)):
                held |= set() if crossing.producer is None else {crossing.producer}
        if not held & left:
            return frozenset(left)
        left -= held


def cost_of_cut(problem: CutProblem, leaving: Iterable[int]) -> int | None:
    """What the split costs; None if it is not legal."""
    left = frozenset(leaving)
    if left & problem.pinned:
        return None
    total = 0
    for node, cost in enumerate(problem.stay):
        if node not in left:
            if cost is None:
                return None
            total += cost
    for crossing in problem.crossings:
        produced = crossing.producer is None or crossing.producer in left
        if not produced and left & set(crossing.readers):
            return None
        if produced and (crossing.read_by_rest or not left.issuperset(crossing.readers)):
            if crossing.cost is None:
                return None
            total += crossing.cost
    for shared in problem.shared:
        total += 0 if left.issuperset(shared.users) else shared.cost
    return total


def _edge(graph: "nx.DiGraph[_Vertex]", start: _Vertex, end: _Vertex, capacity: int | None) -> None:
    """Adds an edge; capacity None is infinite. Parallel edges add up."""
    if capacity is None:
        graph.add_edge(start, end)
        graph[start][end].pop("capacity", None)
    elif not graph.has_edge(start, end):
        graph.add_edge(start, end, capacity=capacity)
    elif "capacity" in graph[start][end]:
        graph[start][end]["capacity"] += capacity
