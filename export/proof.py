"""Runs graphs of the compiler's phases against each other, in ONNX Runtime, node by node as they are written."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.errors import ParityError
from latentc.parity import relative_l2
from latentc.schema import Figure

from export.hoist import ROWS, SCHEDULE_ROW, Feed, Layout
from export.runner import run_model


@dataclass(frozen=True)
class Parts:
    """The graphs of one step in the order in which they run, and what they exchange."""

    graphs: Mapping[str, ir.Model]  # prompt and schedule only where something was hoisted
    layout: Layout | None


def prologue_outputs(parts: Parts, inputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """What prompt and schedule give for one step: {"prompt": {…}, "schedule": {rows: [rows_per_step, width]}}."""
    outputs: dict[str, dict[str, np.ndarray]] = {}
    if "prompt" in parts.graphs:
        outputs["prompt"] = run_model(parts.graphs["prompt"], inputs)
    if "schedule" in parts.graphs:
        assert parts.layout is not None, "a schedule graph comes with its layout"
        outputs["schedule"] = run_model(
            parts.graphs["schedule"], schedule_inputs(parts.layout, dict(inputs) | outputs.get("prompt", {}))
        )
    return outputs


def schedule_inputs(layout: Layout, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of the schedule graph for one step; where one row is enough for all, one item of the timestep."""
    one = layout.rows_per_step == "1"
    return {
        item.name: known[item.name][:1, :1] if one and item.feed is Feed.STACK else known[item.name]
        for item in layout.schedule_inputs
    }


def run_parts(parts: Parts, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the last graph, with what the graphs before it hand over."""
    return run_model(parts.graphs["denoise"], loop_inputs(parts, inputs))


def compare_phase(
    phase: str, graph: str, actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], bound: float
) -> list[Figure]:
    """One figure for each output; raises ParityError for one that does not hold."""
    figures = [
        Figure(
            tensor=f"{graph}/{name}",
            measure="relative_l2",
            value=relative_l2(actual[name], expected[name]),
            bound=bound,
            against=f"phase {phase}: the graph before it",
        )
        for name in expected
    ]
    for figure in figures:
        if not figure.holds:
            raise ParityError(
                f"phase {phase} changed {figure.tensor}: relative_l2 is {figure.value:.3g}, must be at most {bound:g}"
            )
    return figures


def hoisted_values(whole: ir.Model, parts: Parts, inputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """What prompt and schedule must return, read inside the graph that nothing has left yet.

    {"prompt": {output: value}, "schedule": {rows: float32 [rows_per_step, width]}}, each only where the part exists.
    """
    layout = parts.layout
    if layout is None:
        return {}
    names = [tensor.value for tensor in layout.prompt_tensors] + [slot.value for slot in layout.slots]
    wanted = tuple(dict.fromkeys(names))
    before = ir.convenience.extract(whole.graph, list(whole.graph.inputs), list(wanted))  # nothing of the loop
    found = run_model(ir.Model(before, ir_version=whole.ir_version), inputs)
    values: dict[str, dict[str, np.ndarray]] = {}
    if "prompt" in parts.graphs:
        values["prompt"] = {tensor.name: found[tensor.value] for tensor in layout.prompt_tensors}
    if "schedule" in parts.graphs:
        columns = [found[slot.value].reshape(-1, slot.width).astype(np.float32) for slot in layout.slots]
        rows = max(len(column) for column in columns)
        table = np.concatenate([np.broadcast_to(column, (rows, column.shape[1])) for column in columns], axis=1)
        values["schedule"] = {ROWS: table[:1] if layout.rows_per_step == "1" else table}
    return values


def handed_over(
    known: Mapping[str, np.ndarray], values: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`known` with what prompt and schedule hand to the loop: `values` as prologue_outputs gives them."""
    row = {SCHEDULE_ROW: values["schedule"][ROWS]} if "schedule" in values else {}
    return {**known, **values.get("prompt", {}), **row}


def taken(graph: ir.Model, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `graph` takes of all that is known."""
    return {value.name or "": known[value.name or ""] for value in graph.graph.inputs}


def loop_inputs(parts: Parts, trajectory_inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All that the denoise graph of `parts` may read in one step, prologue included."""
    return handed_over(trajectory_inputs, prologue_outputs(parts, trajectory_inputs))
