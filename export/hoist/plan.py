"""Chooses what leaves the loop: one minimum cut for every way to run the schedule, and the cheapest of them.

The ways differ in how steps are stacked (export.hoist.rows) and in whether there is a prompt graph. Each is solved
exactly; leaving everything in the loop is a solution of all of them.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

from export.hoist.classes import Classes, ValueClass
from export.hoist.cost_model import Work
from export.hoist.crossing import NO_SCHEDULE_GRAPH, UNTRIED, Subject, crossing_cost
from export.hoist.cut import Crossing, CutProblem, Shared, cost_of_cut, largest_legal, minimum_cut
from export.hoist.rows import Kinds, Stacking, kinds_of


@dataclass(frozen=True)
class Plan:
    """What leaves the loop. Values and nodes are those of the subject's graph, in its order."""

    tried: Stacking | None  # the way to stack steps that the cut was made for
    stacking: Stacking | None  # None: no schedule graph
    kinds: Kinds
    leaving: frozenset[ir.Node]
    must_stay: frozenset[ir.Node]  # nodes that could leave by their class, and have a reason in `declined`
    rows: tuple[ir.Value, ...]  # values of the schedule that the loop reads
    prompt: tuple[ir.Value, ...]  # computed values of the prompt that the loop reads
    cost: int  # in the cost model's units, with what the parts themselves must earn
    cost_of_nothing: int  # of leaving everything in the loop
    cost_of_all: int  # of hoisting all that is legal in this way
    declined: Mapping[str, str]  # value -> why it stays in the loop although its class would let it leave


@dataclass(frozen=True)
class _Network:
    nodes: tuple[ir.Node, ...]
    problem: CutProblem
    must_stay: frozenset[ir.Node]
    declined: Mapping[str, str]


def best_plan(subject: Subject, stackings: Iterable[Stacking], mixing: Mapping[ir.Value, str]) -> Plan:
    """The cheapest plan. `mixing` are values that failed the numerical check, each with the reason."""
    plans = [
        _plan(subject, stacking, prompt_graph, mixing)
        for stacking in (None, *stackings)
        for prompt_graph in (False, True)
    ]
    best = min(plans, key=lambda plan: plan.cost)  # the first of equals: no part where none is needed
    stacked = [plan for plan in plans if plan.tried is not None]
    explained = best if best.tried is not None or not stacked else min(stacked, key=lambda plan: plan.cost)
    return replace(
        best,
        cost_of_all=min(plan.cost_of_all for plan in plans),
        must_stay=explained.must_stay,
        declined=explained.declined,
    )


def _plan(subject: Subject, stacking: Stacking | None, prompt_graph: bool, mixing: Mapping[ir.Value, str]) -> Plan:
    kinds = kinds_of(subject.model, subject.classes, stacking) if stacking is not None else Kinds({}, {})
    network = _network(subject, stacking, kinds, prompt_graph, mixing)
    cheapest = minimum_cut(network.problem)
    assert cheapest is not None, "to leave every node in the loop is legal"
    leaving = frozenset(node for index, node in enumerate(network.nodes) if index in cheapest)
    rows, prompt = _crossing(leaving, subject)
    return Plan(
        tried=stacking,
        stacking=stacking if rows else None,
        kinds=kinds,
        leaving=leaving,
        must_stay=network.must_stay,
        rows=rows,
        prompt=prompt,
        cost=_cost(network, cheapest, subject),
        cost_of_nothing=_cost(network, frozenset(), subject),
        cost_of_all=_cost(network, largest_legal(network.problem), subject),
        declined=network.declined,
    )


def _network(
    subject: Subject, stacking: Stacking | None, kinds: Kinds, prompt_graph: bool, mixing: Mapping[ir.Value, str]
) -> _Network:
    classes = subject.classes
    nodes = tuple(node for node in subject.model.graph if _may_leave(node, classes))
    index = {node: i for i, node in enumerate(nodes)}
    reasons: dict[ir.Value, str] = {}
    for node in nodes:
        if (reason := _pinning(node, subject, stacking, kinds, mixing)) is not None:
            reasons |= dict.fromkeys(node.outputs, reason)
    pinned = frozenset(index[node] for node in nodes if node.outputs[0] in reasons)
    crossings = []
    inputs = (value for value in subject.model.graph.inputs if classes[value] is not ValueClass.LOOP)
    for value in (*inputs, *(value for node in nodes for value in node.outputs)):
        producer = value.producer()
        cost = crossing_cost(value, subject, stacking, kinds, prompt_graph)
        if isinstance(cost, str):
            reasons.setdefault(value, cost)
        crossings.append(
            Crossing(
                producer=None if producer is None else index[producer],
                readers=tuple(index[reader] for reader in dict.fromkeys(value.consumers()) if reader in index),
                cost=None if isinstance(cost, str) else cost,
                read_by_rest=any(r not in index and r.outputs[0] not in classes.sizes for r in value.consumers()),
            )
        )
    works = [subject.works[node] for node in nodes]
    problem = CutProblem(
        stay=tuple(subject.cost_model.stay(work) if isinstance(work, Work) else 0 for work in works),
        pinned=pinned,
        crossings=tuple(crossings),
        shared=tuple(_weights(nodes, index, subject)),
    )
    # That a way was not tried is no reason; and the first value of a chain speaks for those behind it.
    told = {value: reason for value, reason in reasons.items() if reason not in UNTRIED}
    first = {reason: value.name or "" for value, reason in reversed(told.items())}
    must_stay = frozenset(node for node in nodes if index[node] in pinned and node.outputs[0] in told)
    return _Network(nodes, problem, must_stay, {name: reason for reason, name in reversed(first.items())})


def _may_leave(node: ir.Node, classes: Classes) -> bool:
    """Whether `node` is work that a graph of its own could do; constants and sizes are free to do in any graph."""
    known = ValueClass.CONSTANT < classes.of_node(node) < ValueClass.LOOP
    return known and node.outputs[0] not in classes.sizes


def _pinning(
    node: ir.Node, subject: Subject, stacking: Stacking | None, kinds: Kinds, mixing: Mapping[ir.Value, str]
) -> str | None:
    """Why `node` must stay in the loop, if it must."""
    work = subject.works[node]
    if isinstance(work, str):
        return work
    for value in node.outputs:
        if value in mixing:
            return mixing[value]
        if subject.classes[value] is ValueClass.SCHEDULE:
            if stacking is None:
                return NO_SCHEDULE_GRAPH
            if (reason := kinds.reason(value)) is not None:
                return reason
    return None


def _weights(nodes: Iterable[ir.Node], index: Mapping[ir.Node, int], subject: Subject) -> Iterable[Shared]:
    """The constants that would leave the loop with these nodes; those that the loop reads anyway are no matter."""
    constants = dict.fromkeys(
        value
        for node in nodes
        for value in node.inputs
        if value is not None and subject.classes[value] is ValueClass.CONSTANT
    )
    for value in constants:
        users = tuple(dict.fromkeys(value.consumers()))
        num_bytes = value.const_value.nbytes if value.const_value is not None else subject.num_bytes(value)
        if all(user in index for user in users):
            yield Shared(tuple(index[user] for user in users), subject.cost_model.held(num_bytes or 0))


def _crossing(leaving: Set[ir.Node], subject: Subject) -> tuple[tuple[ir.Value, ...], tuple[ir.Value, ...]]:
    """The values that the loop reads of what left: those of the schedule, and those of the prompt."""
    crossing = [
        value
        for node in subject.model.graph
        if node in leaving
        for value in node.outputs
        if any(r not in leaving and r.outputs[0] not in subject.classes.sizes for r in value.consumers())
    ]
    rows = tuple(value for value in crossing if subject.classes[value] is ValueClass.SCHEDULE)
    return rows, tuple(value for value in crossing if subject.classes[value] is ValueClass.PROMPT)


def _cost(network: _Network, leaving: frozenset[int], subject: Subject) -> int:
    """The cost of a legal cut, with what a graph of its own must earn for each part that it needs."""
    cost = cost_of_cut(network.problem, leaving)
    assert cost is not None
    parts = _crossing({network.nodes[index] for index in leaving}, subject)
    return cost + sum(subject.cost_model.units(subject.cost_model.part_bytes) for part in parts if part)
