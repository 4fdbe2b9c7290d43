"""What was cut where and why: figures of the graph by class and by part, as data and as a table to read."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import onnx_ir as ir

from export.cost import NodeCost, cost_of_graph, cost_of_node, model_with_static_shapes
from export.hoist.classes import ValueClass
from export.hoist.cost_model import UNITS_PER_BYTE
from export.hoist.crossing import ROW_ITEM_BYTES, Subject
from export.hoist.layout import Layout
from export.hoist.plan import Plan


@dataclass(frozen=True)
class ClassFigures:
    """The work of one class in the whole graph, for one step."""

    nodes: int
    parameters: int
    weight_bytes: int
    flops: int


@dataclass(frozen=True)
class PartFigures:
    """One graph of the partition: what it holds, and the FLOPs of one run of it (the schedule's: all steps)."""

    runs_once_per: str
    nodes: int
    parameters: int
    weight_bytes: int
    flops: int


@dataclass(frozen=True)
class CrossingFigures:
    """A value that one part hands to another."""

    value: str
    label: str
    source: str
    targets: tuple[str, ...]
    num_bytes: int  # a step, or a request where the loop does not read it
    weight_bytes_behind: int  # of the weights that it is computed from: what the reader need not have


@dataclass(frozen=True)
class Declined:
    """A value that could leave the loop by its class and stays, and why; it speaks for those that depend on it."""

    value: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The account of one partition at the dims and the step count of its cost model."""

    dims: Mapping[str, int]
    steps: int
    whole: PartFigures
    classes: Mapping[str, ClassFigures]
    parts: Mapping[str, PartFigures]
    row_bytes: int  # of one step
    table_bytes: int  # of all steps
    bytes_read_per_step_before: int  # weights and inputs
    bytes_read_per_step_after: int  # weights, inputs, row and prompt tensors
    cost: float  # of the cut, of no cut, and of hoisting all that is legal, in bytes of the cost model
    cost_of_nothing: float
    cost_of_all: float
    rows_checked: str
    crossings: tuple[CrossingFigures, ...]
    declined: tuple[Declined, ...]

    def json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(asdict(self), indent=2)


def report_of(
    subject: Subject,
    plan: Plan,
    layout: Layout,
    prompt: ir.Model | None,
    schedule: ir.Model | None,
    denoise: ir.Model,
    *,
    checked: bool,
) -> Report:
    """The account of `plan`, whose parts are finished."""
    dims, steps = subject.cost_model.dims, subject.cost_model.steps
    parts = {}
    if prompt is not None:
        parts["prompt"] = _part(prompt, dims, "request")
    if schedule is not None and plan.stacking is not None:
        parts["schedule"] = _part(schedule, plan.stacking.dims_of_all(dims, steps), "request")
    parts["denoise"] = _part(denoise, dims, "step")
    row_bytes = 0
    if plan.stacking is not None:
        rows = 1 if plan.stacking.timestep_only else subject.base.shapes[plan.rows[0].name or ""][0]
        row_bytes = rows * layout.width * ROW_ITEM_BYTES
    return Report(
        dims=dict(dims),
        steps=steps,
        whole=_part(subject.model, dims, "step"),
        classes={c.name.lower(): _class_figures(subject, c) for c in ValueClass},
        parts=parts,
        row_bytes=row_bytes,
        table_bytes=row_bytes * steps,
        bytes_read_per_step_before=_bytes_read(subject.model, dims),
        bytes_read_per_step_after=_bytes_read(denoise, dims),
        cost=plan.cost / UNITS_PER_BYTE,
        cost_of_nothing=plan.cost_of_nothing / UNITS_PER_BYTE,
        cost_of_all=plan.cost_of_all / UNITS_PER_BYTE,
        rows_checked="structurally and in ONNX Runtime" if checked else "structurally",
        crossings=tuple(_crossings(subject, plan, layout)),
        declined=tuple(Declined(value, reason) for value, reason in plan.declined.items()),
    )


def _part(model: ir.Model, dims: Mapping[str, int], runs_once_per: str) -> PartFigures:
    cost = cost_of_graph(model, dims)
    return PartFigures(runs_once_per, cost.nodes, cost.parameters, cost.weight_bytes, cost.flops)


def _class_figures(subject: Subject, value_class: ValueClass) -> ClassFigures:
    nodes = [node for node in subject.model.graph if subject.classes.of_node(node) is value_class]
    weights = _weights(nodes)
    costs = [cost for node in nodes if isinstance(cost := subject.costs[node], NodeCost)]
    return ClassFigures(
        nodes=len(nodes),
        parameters=sum(tensor.size for tensor in weights if tensor.dtype.is_floating_point()),
        weight_bytes=sum(tensor.nbytes for tensor in weights),
        flops=sum(cost.flops for cost in costs),
    )


def _weights(nodes: Iterable[ir.Node]) -> Sequence[ir.TensorProtocol]:
    """The tensors that the nodes read, each once."""
    read = (value.const_value for node in nodes for value in node.inputs if value is not None)
    return list({id(tensor): tensor for tensor in read if tensor is not None}.values())


def _bytes_read(model: ir.Model, dims: Mapping[str, int]) -> int:
    """What one run reads of weights (of a table only the rows that are looked up) and inputs."""
    static = model_with_static_shapes(model, dims)
    inputs = sum(
        math.ceil(math.prod(value.shape.numpy()) * value.dtype.bitwidth / 8)
        for value in static.graph.inputs
        if value.shape is not None and value.dtype is not None
    )
    return inputs + sum(cost_of_node(node, {}).weight_bytes_read for node in static.graph)


def _crossings(subject: Subject, plan: Plan, layout: Layout) -> Iterable[CrossingFigures]:
    values = {value.name: value for node in subject.model.graph for value in node.outputs}
    rows = 1
    if plan.stacking is not None and not plan.stacking.timestep_only:
        rows = subject.base.shapes[plan.rows[0].name or ""][0]
    for slot in layout.slots:
        behind = sum(tensor.nbytes for tensor in _weights(_behind(values[slot.value])))
        num_bytes = rows * slot.width * ROW_ITEM_BYTES
        yield CrossingFigures(slot.value, slot.label, "schedule", ("denoise",), num_bytes, behind)
    for tensor in layout.prompt_tensors:
        value = values[tensor.value]
        targets = tuple(
            name
            for name, reads in (("schedule", tensor.read_by_schedule), ("denoise", tensor.read_by_loop))
            if reads
        )
        behind = sum(weight.nbytes for weight in _weights(_behind(value)))
        yield CrossingFigures(tensor.value, tensor.label, "prompt", targets, subject.num_bytes(value) or 0, behind)


def _behind(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    pending = [value.producer()]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(read.producer() for read in node.inputs if read is not None)
    return found
