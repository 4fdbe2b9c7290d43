"""The free nodes take the precision with the fewest casts: against brute force on random chains."""

import itertools

import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from export.precision.assignment import CAST, WIDE_RESULT, free_to_widen
from export.precision.rules import island_reasons
from tests.export.precision.graphs import WIDTH, matrix, parsed

_OPERATORS = ("Relu", "Tanh", "MatMul", "Softmax", "Add")


def _graph(operators: list[str], joins: list[int]) -> ir.Graph:
    """x -> MatMul -> the operators one after the other -> MatMul; Add joins an earlier value again."""
    lines, last = ["v0 = MatMul(x, w)"], "v0"
    for index, operator in enumerate(operators):
        joined = f"v{joins[index] % (index + 1)}"
        argument = {"MatMul": f"{last}, w", "Add": f"{last}, {joined}"}.get(operator, last)
        last = f"v{index + 1}"
        lines.append(f"{last} = {operator}({argument})")
    lines.append(f"y = MatMul({last}, w)")
    constants = {"w": matrix(0, WIDTH, WIDTH)}
    body = "\n".join(lines)
    return parsed(body, inputs="float[4, 16] x", output="float[4, 16] y", constants=constants).graph


def _cost(graph: ir.Graph, wide: set[ir.Node], islands: set[ir.Node]) -> int:
    cost = WIDE_RESULT * len(wide - islands)
    for value in (*graph.inputs, *(node.outputs[0] for node in graph)):
        producer = value.producer()
        is_wide = producer is None or producer in wide
        readers = {user in wide for user in value.consumers()} | ({True} if value.is_graph_output() else set())
        cost += CAST * ((not is_wide) in readers)
    return cost


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(_OPERATORS), min_size=1, max_size=6), st.lists(st.integers(0, 9), min_size=6, max_size=6)
)
def test_no_assignment_is_cheaper(operators: list[str], joins: list[int]) -> None:
    graph = _graph(operators, joins)
    islands = set(island_reasons(graph, []))
    found = _cost(graph, islands | free_to_widen(graph, islands), islands)
    free = [node for node in graph if node not in islands and node.op_type != "MatMul"]
    best = min(
        _cost(graph, islands | set(chosen), islands)
        for size in range(len(free) + 1)
        for chosen in itertools.combinations(free, size)
    )
    assert found == best


def test_a_node_between_two_islands_joins_them() -> None:
    graph = _graph(["Softmax", "Relu", "Softmax"], [0, 0, 0])
    islands = set(island_reasons(graph, []))
    assert [node.op_type for node in free_to_widen(graph, islands)] == ["Relu"]


def test_a_node_between_two_contractions_does_not() -> None:
    graph = _graph(["Relu"], [0])
    assert not free_to_widen(graph, set(island_reasons(graph, [])))
