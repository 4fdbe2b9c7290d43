"""Chooses which values of the prompt the schedule graph is handed, and which it computes itself: the second cut.

The prompt graph runs once a request, the schedule graph N rows at once, so FLOPs cost N - 1 times more there; a tensor
that is handed over is copied N times. A value of the prompt that cannot be computed for stacked steps must be handed
over.
"""

from dataclasses import dataclass

import onnx_ir as ir

from export.hoist.classes import ValueClass
from export.hoist.cost_model import Work
from export.hoist.crossing import Subject
from export.hoist.cut import Crossing, CutProblem, cost_of_cut, minimum_cut
from export.hoist.plan import Plan
from export.hoist.rows import Kind


@dataclass(frozen=True)
class Handover:
    """The prompt values that the schedule graph reads, each with the copies it needs."""

    inputs: tuple[ir.Value, ...]  # inputs of the whole graph
    computed: tuple[ir.Value, ...]  # results of the prompt graph


def handover(subject: Subject, plan: Plan) -> Handover:
    """What crosses from the prompt to the schedule graph of `plan`."""
    if plan.stacking is None:
        return Handover((), ())
    nodes, schedule = _closure(subject, plan)
    index = {node: i for i, node in enumerate(nodes)}
    inputs = [v for v in subject.model.graph.inputs if subject.classes[v] is ValueClass.PROMPT]
    values = [v for v in (*inputs, *(v for node in nodes for v in node.outputs)) if _read(v, index, schedule)]
    crossings = []
    for value in values:
        producer = value.producer()
        num_bytes = subject.num_bytes(value) or 0
        copies = subject.cost_model.steps if plan.kinds.of[value] is Kind.ROWS else 1
        crossings.append(
            Crossing(
                producer=None if producer is None else index[producer],
                readers=tuple(index[reader] for reader in dict.fromkeys(value.consumers()) if reader in index),
                cost=subject.cost_model.units(num_bytes * copies) + (producer is not None),  # an input serves as well
                read_by_rest=any(reader in schedule for reader in value.consumers()),
            )
        )
    problem = CutProblem(tuple(_extra_cost(node, subject, plan) for node in nodes), frozenset(), tuple(crossings))
    leaving = minimum_cut(problem)
    assert leaving is not None, "to compute every prompt value in the prompt graph is legal"
    nothing, least = cost_of_cut(problem, ()), cost_of_cut(problem, leaving)
    assert least is not None
    part = 0 if plan.prompt else subject.cost_model.units(subject.cost_model.part_bytes)
    if nothing is not None and nothing <= least + part:
        leaving = frozenset()
    left = {node for node in nodes if index[node] in leaving}
    handed = [
        value
        for value in values
        if (value.producer() is None or value.producer() in left)
        and any(reader in schedule or (reader in index and reader not in left) for reader in value.consumers())
    ]
    return Handover(
        tuple(value for value in handed if value.is_graph_input()),
        tuple(value for value in handed if not value.is_graph_input()),
    )


def _closure(subject: Subject, plan: Plan) -> tuple[tuple[ir.Node, ...], frozenset[ir.Node]]:
    """The nodes behind the row: those of the prompt, in the graph's order, and those of the schedule."""
    found: set[ir.Node] = set()
    pending = [value.producer() for value in plan.rows]
    while pending:
        node = pending.pop()
        if node is None or node in found or node.outputs[0] in subject.classes.sizes:
            continue
        found.add(node)
        pending.extend(value.producer() for value in node.inputs if value is not None)
    of = subject.classes.of_node
    prompt = tuple(node for node in subject.model.graph if node in found and of(node) is ValueClass.PROMPT)
    return prompt, frozenset(node for node in found if of(node) is ValueClass.SCHEDULE)


def _read(value: ir.Value, index: dict[ir.Node, int], schedule: frozenset[ir.Node]) -> bool:
    return any(reader in index or reader in schedule for reader in value.consumers())


def _extra_cost(node: ir.Node, subject: Subject, plan: Plan) -> int | None:
    """What `node` costs more in the schedule graph than in the prompt graph; None if it cannot run there."""
    work = subject.works[node]
    if any(value in plan.kinds.copied for value in node.outputs) or not isinstance(work, Work):
        return None
    return (subject.cost_model.steps - 1) * subject.cost_model.run(work)
