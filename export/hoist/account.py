"""Fills in the report of a partition from its parts."""

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from export.cost import cost_of_node, model_with_static_shapes, value_bytes
from export.hoist.classes import ValueClass
from export.hoist.cost_model import UNITS_PER_BYTE, Work
from export.hoist.crossing import ROW_ITEM_BYTES, Subject
from export.hoist.layout import Layout, label_of_node
from export.hoist.plan import Plan
from export.hoist.report import Cheaper, ClassFigures, CrossingFigures, Declined, PartFigures, Placement, Report


def report_of(subject: Subject, plan: Plan, layout: Layout, parts: Mapping[str, ir.Model], *, checked: bool) -> Report:
    """The account of `plan`, whose `parts` are finished."""
    dims, steps = subject.cost_model.dims, subject.cost_model.steps
    of_all = dims if plan.stacking is None else plan.stacking.dims_of_all(dims, steps)
    figures = {
        name: _part(
            model_with_static_shapes(part, of_all if name == "schedule" else dims),
            "step" if name == "denoise" else "request",
        )
        for name, part in parts.items()
    }
    whole, read_before = _part(subject.static, "step")
    row_bytes = 0
    if plan.stacking is not None:
        rows = 1 if plan.stacking.timestep_only else subject.base.shapes[plan.rows[0].name or ""][0]
        row_bytes = rows * layout.width * ROW_ITEM_BYTES
    return Report(
        dims=dict(dims),
        steps=steps,
        whole=whole,
        classes={c.name.lower(): _class_figures(subject, c) for c in ValueClass},
        parts={name: part for name, (part, _) in figures.items()},
        row_bytes=row_bytes,
        table_bytes=row_bytes * steps,
        bytes_read_per_step_before=read_before,
        bytes_read_per_step_after=figures["denoise"][1],
        cost=plan.cost / UNITS_PER_BYTE,
        cost_of_nothing=plan.cost_of_nothing / UNITS_PER_BYTE,
        cost_of_all=plan.cost_of_all / UNITS_PER_BYTE,
        rows_checked="structurally and in ONNX Runtime" if checked else "structurally",
        crossings=tuple(_crossings(subject, plan, layout)),
        cheaper=tuple(_cheaper(subject, plan)),
        declined=tuple(Declined(value, reason) for value, reason in plan.declined.items()),
    )


def placements_of(subject: Subject, parts: Mapping[str, ir.Model]) -> tuple[Placement, ...]:
    """Where every node of the whole step went."""
    there = {name: {node.name for node in model.graph} for name, model in parts.items()}
    return tuple(
        Placement(
            node=node.name or "",
            operator=node.op_type,
            value=node.outputs[0].name or "",
            value_class=subject.classes.of_node(node).name.lower(),
            parts=tuple(name for name, names in there.items() if node.name in names),
            weight_bytes=sum(tensor.nbytes for tensor in _weights(subject, [node])),
        )
        for node in subject.model.graph
    )


def _part(static: ir.Model, runs_once_per: str) -> tuple[PartFigures, int]:
    """The figures of one run of `static`, and the bytes it reads: inputs and weights (of a table only its rows)."""
    costs = [cost_of_node(node, {}) for node in static.graph]
    weights = list(
        {id(v.const_value): v.const_value for v in static.graph.initializers.values() if v.const_value}.values()
    )
    figures = PartFigures(
        runs_once_per=runs_once_per,
        nodes=len(costs),
        parameters=sum(tensor.size for tensor in weights if tensor.dtype.is_floating_point()),
        weight_bytes=sum(tensor.nbytes for tensor in weights),
        flops=sum(cost.flops for cost in costs),
    )
    inputs = sum(value_bytes(value, {}) for value in static.graph.inputs)
    return figures, inputs + sum(cost.weight_bytes_read for cost in costs)


def _class_figures(subject: Subject, value_class: ValueClass) -> ClassFigures:
    nodes = [node for node in subject.model.graph if subject.classes.of_node(node) is value_class]
    weights = _weights(subject, nodes)
    works = [work for node in nodes if isinstance(work := subject.works[node], Work)]
    return ClassFigures(
        nodes=len(nodes),
        parameters=sum(tensor.size for tensor in weights if tensor.dtype.is_floating_point()),
        weight_bytes=sum(tensor.nbytes for tensor in weights),
        flops=sum(work.cost.flops for work in works),
    )


def _weights(subject: Subject, nodes: Iterable[ir.Node]) -> Sequence[ir.TensorProtocol]:
    """The tensors that the nodes read, each once."""
    return list({id(tensor): tensor for node in nodes for tensor in subject.weights_of(node)}.values())


def _crossings(subject: Subject, plan: Plan, layout: Layout) -> Iterable[CrossingFigures]:
    values = {value.name: value for node in subject.model.graph for value in node.outputs}
    rows = 1
    if plan.stacking is not None and not plan.stacking.timestep_only:
        rows = subject.base.shapes[plan.rows[0].name or ""][0]
    for slot in layout.slots:
        behind = sum(tensor.nbytes for tensor in _weights(subject, _behind(values[slot.value])))
        num_bytes = rows * slot.width * ROW_ITEM_BYTES
        yield CrossingFigures(slot.value, slot.label, "schedule", ("denoise",), num_bytes, behind)
    for tensor in layout.prompt_tensors:
        value = values[tensor.value]
        targets = tuple(
            name for name, reads in (("schedule", tensor.read_by_schedule), ("denoise", tensor.read_by_loop)) if reads
        )
        behind = sum(weight.nbytes for weight in _weights(subject, _behind(value)))
        yield CrossingFigures(tensor.value, tensor.label, "prompt", targets, subject.num_bytes(value) or 0, behind)


def _cheaper(subject: Subject, plan: Plan) -> Iterable[Cheaper]:
    for node in subject.model.graph:
        value, value_class = node.outputs[0], subject.classes.of_node(node)
        free = ValueClass.CONSTANT < value_class < ValueClass.LOOP and node not in plan.must_stay
        weight_bytes = sum(tensor.nbytes for tensor in _weights(subject, [node]) if len(tensor.shape) > 1)
        if free and weight_bytes and node not in plan.leaving:
            yield Cheaper(value.name or "", label_of_node(node), value_class.name.lower(), weight_bytes)


def _behind(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    pending = [value.producer()]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(read.producer() for read in node.inputs if read is not None)
    return found
