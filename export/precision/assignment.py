"""The precision of the nodes that no rule fixes: the choice with the fewest casts, by minimum cut.

Every node is float32 (source side) or float16 (sink side). Islands are tied to the source, contractions and readers of
large weights to the sink; what is left is free. A value costs one cast where some reader's precision is not its
producer's, however many such readers there are, since they share the cast. Each is an auxiliary vertex:

    producer float32, some reader float16     producer -> a (CAST), a -> each reader (inf)
    producer float16, some reader float32     each reader -> b (inf), b -> producer (CAST)

Graph inputs and outputs are float32. A free node pays a little for float32: the bytes of its result, twice what they
would be. So a chain between two islands joins them (no cast ping-pong), and all else is half. Widening a node to
float32 never costs accuracy; nothing is narrowed here that a rule or the calibration holds wide.
"""

from collections.abc import Iterable, Mapping, Set

import networkx as nx
import onnx_ir as ir

from export.precision.regions import CONTRACTIONS, reads_weight
from export.precision.rules import MOVEMENT, half_slots, indifferent, real

CAST = 100  # integers: the cut is exact
WIDE_RESULT = 10  # an element-wise node in float32: fused into its neighbours by most backends
WIDE_MOVEMENT = 1

_Vertex = ir.Node | ir.Value | tuple[str, ir.Value] | str
_FLOAT, _HALF = "float32", "float16"


def free_to_widen(graph: ir.Graph, islands: Set[ir.Node] | Mapping[ir.Node, str]) -> set[ir.Node]:
    """The nodes outside `islands` that are better in float32, since that saves casts."""
    free = {
        node
        for node in graph
        if node not in islands
        and node.op_type not in CONTRACTIONS
        and not reads_weight(node)
        and not indifferent(node)
        and any(map(real, (*node.inputs, *node.outputs)))
    }
    widened: set[ir.Node] = set()
    for component in _components(free):
        widened |= _cut(component, islands)
    return widened


def _components(free: set[ir.Node]) -> Iterable[set[ir.Node]]:
    """Groups of free nodes that share a value; cuts in two of them do not depend on each other."""
    graph: nx.Graph[ir.Node | ir.Value] = nx.Graph()
    graph.add_nodes_from(free)
    for node in free:
        for value in (*_real_inputs(node), *node.outputs):
            if real(value):
                graph.add_edge(node, value)
    for vertices in nx.connected_components(graph):
        yield {vertex for vertex in vertices if isinstance(vertex, ir.Node)}


def _cut(free: set[ir.Node], islands: Set[ir.Node] | Mapping[ir.Node, str]) -> set[ir.Node]:
    def vertex(node: ir.Node | None) -> _Vertex:
        if node is None or node in islands:
            return _FLOAT
        return node if node in free else _HALF

    graph: nx.DiGraph[_Vertex] = nx.DiGraph()
    graph.add_nodes_from((_FLOAT, _HALF))
    for node in free:
        graph.add_edge(node, _HALF, capacity=WIDE_MOVEMENT if node.op_type in MOVEMENT else WIDE_RESULT)
    # In the graph's order, so that of two cuts of one cost the same one is found every time.
    values = dict.fromkeys(
        value for node in free for value in (*_real_inputs(node), *node.outputs) if real(value) and not _constant(value)
    )
    for value in values:
        producer = vertex(value.producer())
        uses = [(user, slot) for user, slot in value.uses() if not indifferent(user)]
        readers = [vertex(user) if half_slots(user)[slot] else _FLOAT for user, slot in uses]
        if value.is_graph_output():
            readers.append(_FLOAT)
        for reader in readers:
            graph.add_edge(("narrow", value), reader)
            graph.add_edge(reader, ("widen", value))
        graph.add_edge(producer, ("narrow", value), capacity=CAST)
        graph.add_edge(("widen", value), producer, capacity=CAST)
    _, (wide, _) = nx.minimum_cut(graph, _FLOAT, _HALF)
    return {node for node in free if node in wide}


def _real_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and real(value)]


def _constant(value: ir.Value) -> bool:
    return value.const_value is not None
