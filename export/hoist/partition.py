"""Splits one traced step into what runs once a request and what runs every step.

    prompt     once a request
    schedule   once a request, with all N steps as its batch; its result is one row a step
    denoise    every step

Contract: the graph and the classes of its inputs go in, three graphs that compose to it come out. It knows no model by
name. The given graph is not changed, weights are shared and never read, except by the check of the schedule graph in
ONNX Runtime (`check_rows`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from export.hoist.account import placements_of, report_of
from export.hoist.classes import InputClass, ValueClass, classify
from export.hoist.cost_model import CostModel, works_of
from export.hoist.crossing import Subject
from export.hoist.extract import Extractor
from export.hoist.handover import Handover, handover
from export.hoist.layout import Feed, Layout, PromptTensor, ScheduleInput, label_of
from export.hoist.packing import pack_rows, slots_of, unpack_row
from export.hoist.plan import Plan, best_plan
from export.hoist.probing import complete_shapes, probes_of, stackings_of
from export.hoist.report import Declined, Placement, Report
from export.hoist.row_check import ROW_TOLERANCE, mixing_values
from export.hoist.rows import Kind
from export.hoist.sizes import sizes_of_value


@dataclass(frozen=True)
class Partition:
    """The parts of one step, how they fit together, and why they are what they are."""

    whole: ir.Model
    prompt: ir.Model | None
    schedule: ir.Model | None
    denoise: ir.Model
    layout: Layout
    report: Report
    placements: tuple[Placement, ...]


def partition(
    model: ir.Model,
    inputs: Mapping[str, InputClass],
    cost_model: CostModel,
    *,
    equal_rows: bool = True,
    check_rows: bool = True,
) -> Partition:
    """Hoists what does not change from step to step out of `model`.

    `inputs` gives the class of every input. `equal_rows` promises that a schedule input does not vary along symbolic
    dims within a step (one timestep for all images). `check_rows` runs the schedule graph with its real weights, on
    single and on stacked steps; without it, the structural proof alone holds.

    Raises:
        HoistError: the graph or the classes cannot be used; see export.hoist.errors.
        CostError: a symbolic dim that `cost_model.dims` does not bind.
    """
    whole = model.clone()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(whole)
    static, probes = probes_of(whole, inputs, cost_model.dims)
    complete_shapes(whole, probes)
    classes = classify(whole, inputs, probes.step)
    subject = Subject(whole, static, classes, probes.base, works_of(whole, static), cost_model)
    found = stackings_of(whole, classes, probes, equal_rows=equal_rows)
    stackings = [] if isinstance(found, str) else found
    mixing: dict[ir.Value, str] = {}
    while True:
        plan = best_plan(subject, stackings, mixing)
        handed = handover(subject, plan)
        schedule = _schedule_graph(subject, plan, handed)
        failed = _mixing(plan, handed, schedule, subject) if check_rows and schedule is not None else {}
        if not failed:
            break
        mixing |= failed
    prompt = _prompt_graph(subject, plan, handed)
    denoise = _denoise_graph(subject, plan, handed)
    layout = _layout(subject, plan, handed, schedule)
    if schedule is not None:
        pack_rows(schedule, layout.slots)
    if layout.slots:
        _unpack(denoise, subject, plan, layout)
    named = {"prompt": prompt, "schedule": schedule, "denoise": denoise}
    parts = {name: part for name, part in named.items() if part is not None}
    report = report_of(subject, plan, layout, parts, checked=check_rows)
    if isinstance(found, str):
        report = replace(report, declined=(*report.declined, Declined(_schedule_names(inputs), found)))
    return Partition(model, prompt, schedule, denoise, layout, report, placements_of(subject, parts))


def _schedule_names(inputs: Mapping[str, InputClass]) -> str:
    return ", ".join(name for name, input_class in inputs.items() if input_class is InputClass.SCHEDULE)


def _prompt_names(subject: Subject, plan: Plan, handed: Handover) -> dict[ir.Value, str]:
    """The outputs of the prompt graph, in the order of the whole graph."""
    wanted = {*plan.prompt, *handed.computed}
    values = [value for node in subject.model.graph for value in node.outputs if value in wanted]
    return {value: f"prompt_{index}" for index, value in enumerate(values)}


def _inputs_of(subject: Subject, *order: ValueClass) -> list[ir.Value]:
    return [value for wanted in order for value in subject.model.graph.inputs if subject.classes[value] is wanted]


def _prompt_graph(subject: Subject, plan: Plan, handed: Handover) -> ir.Model | None:
    names = _prompt_names(subject, plan, handed)
    if not names:
        return None
    return _extractor(subject).part("prompt", {}, names, _inputs_of(subject, ValueClass.PROMPT))


def _schedule_graph(subject: Subject, plan: Plan, handed: Handover) -> ir.Model | None:
    """The schedule graph with one output for each value of the row."""
    if plan.stacking is None:
        return None
    names = _prompt_names(subject, plan, handed)
    given = {value: names[value] for value in handed.computed}
    classes = (ValueClass.SCHEDULE,) if plan.stacking.timestep_only else (ValueClass.SCHEDULE, ValueClass.PROMPT)
    outputs = {value: value.name or "" for value in plan.rows}
    return _extractor(subject).part("schedule", given, outputs, _inputs_of(subject, *classes))


def _denoise_graph(subject: Subject, plan: Plan, handed: Handover) -> ir.Model:
    """The loop's graph with one input for each value of the row."""
    names = _prompt_names(subject, plan, handed)
    given = {value: names[value] for value in plan.prompt} | {value: value.name or "" for value in plan.rows}
    outputs = {value: value.name or "" for value in subject.model.graph.outputs}
    sources = _inputs_of(subject, ValueClass.LOOP, ValueClass.PROMPT, ValueClass.SCHEDULE)
    return _extractor(subject).part("denoise", given, outputs, sources)


def _extractor(subject: Subject) -> Extractor:
    return Extractor(subject.model, subject.classes, subject.base)


def _mixing(plan: Plan, handed: Handover, schedule: ir.Model, subject: Subject) -> dict[ir.Value, str]:
    """The values of the row that fail the numerical check, each with the reason."""
    assert plan.stacking is not None
    feeds = {item.name: item.feed for item in _schedule_inputs(subject, plan, handed, schedule)}
    errors = mixing_values(schedule, feeds, plan.stacking)
    return {
        value: f"{value.name!r} of stacked steps differs from that of single steps by {errors[value.name or '']:.1e} "
        f"(bound {ROW_TOLERANCE:.0e})"
        for value in plan.rows
        if value.name in errors
    }


def _schedule_inputs(subject: Subject, plan: Plan, handed: Handover, schedule: ir.Model) -> tuple[ScheduleInput, ...]:
    names = _prompt_names(subject, plan, handed)
    kinds = {value.name: plan.kinds.of[value] for value in subject.model.graph.inputs if value in plan.kinds.of}
    kinds |= {names[value]: plan.kinds.of[value] for value in handed.computed}
    found = []
    for value in schedule.graph.inputs:
        name = value.name or ""
        if subject.classes.inputs.get(name) is InputClass.SCHEDULE:
            feed = Feed.STACK
        else:
            feed = Feed.TILE if kinds[name] is Kind.ROWS else Feed.ONCE
        found.append(ScheduleInput(name, feed))
    return tuple(found)


def _layout(subject: Subject, plan: Plan, handed: Handover, schedule: ir.Model | None) -> Layout:
    slots = slots_of(plan.rows)
    rows = "1"
    if plan.stacking is not None and not plan.stacking.timestep_only:
        shape = plan.rows[0].shape
        rows = str(shape[0]) if shape is not None else ""
    return Layout(
        width=sum(slot.width for slot in slots),
        rows_per_step=rows if slots else "0",
        slots=slots,
        schedule_inputs=() if schedule is None else _schedule_inputs(subject, plan, handed, schedule),
        prompt_tensors=tuple(
            PromptTensor(name, value.name or "", label_of(value), value in plan.prompt, value in handed.computed)
            for value, name in _prompt_names(subject, plan, handed).items()
        ),
    )


def _unpack(denoise: ir.Model, subject: Subject, plan: Plan, layout: Layout) -> None:
    """Gives the loop's graph the row as its input."""
    leading = None
    if plan.stacking is not None and plan.stacking.timestep_only:
        sizes = [sizes_of_value(value, subject.base.dims, subject.base) for value in plan.rows]
        leading = [polynomials[0] for polynomials in sizes if polynomials is not None]
    sources = {value.name or "": value for value in _inputs_of(subject, ValueClass.LOOP, ValueClass.PROMPT)}
    unpack_row(denoise, layout.slots, leading, sources)
