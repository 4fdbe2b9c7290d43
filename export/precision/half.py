"""A float32 graph in, the same graph in half precision out, with a report of what stayed wide and why.

The numbers of the pipeline: islands by rule and by family (rules.py), islands found on calibration inputs, weights that
do not fit, then the fewest casts (assignment.py), then the graph is written (casts.py). Speed is not judged here: ONNX
Runtime's CPU backend computes most float16 operators through float32, so it shows the numerics and not the time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from export.precision.assignment import free_to_widen
from export.precision.calibration import Measured, measured
from export.precision.casts import write_half
from export.precision.rules import Island, island_reasons, real
from export.precision.weights import HALF_MAX, WeightFit

PEAK_SHARE = 1 / 8  # of 65504: room for inputs that the calibration did not hold

SAVES_CASTS = "between float32 neighbours: fewer casts"


@dataclass(frozen=True)
class IslandNode:
    """One node that computes in float32; `peak` is the largest magnitude at its inputs and outputs, if measured."""

    node: str
    op_type: str
    reason: str
    peak: float | None


@dataclass(frozen=True)
class HalfReport:
    """What was decided: islands in the graph's order, weights that half holds badly, and counts."""

    islands: tuple[IslandNode, ...]
    weights: tuple[WeightFit, ...]
    num_casts: int
    num_half_nodes: int


@dataclass(frozen=True)
class HalfResult:
    """The converted model (the one that was handed in, changed in place) and the report."""

    model: ir.Model
    report: HalfReport


def prepare(model: ir.Model) -> None:
    """Brings `model` into the form that is measured and converted; raises LatentcError where it has none."""
    for make in (InlinePass(), LiftConstantsToInitializersPass(lift_all_constants=True), TopologicalSortPass()):
        make(model)
    _require_typed(model)


def to_half(
    model: ir.Model,
    calibration: Sequence[Mapping[str, np.ndarray]] = (),
    islands: Sequence[Island] = (),
    peak_share: float = PEAK_SHARE,
) -> HalfResult:
    """Prepares and measures `model`, and writes float16 into it, in place.

    calibration: samples, each input name -> array as ONNX Runtime takes it; without any, nothing is found beyond rules.
    """
    prepare(model)
    return half_of_measured(model, measured(model, calibration), islands, peak_share)


def half_of_measured(
    model: ir.Model,
    found: Measured,
    islands: Sequence[Island] = (),
    peak_share: float = PEAK_SHARE,
) -> HalfResult:
    """Writes float16 into a prepared `model`, in place; inputs and outputs keep their dtypes and names.

    found: what `measured` says of it.
    islands: the family's own; one that holds for no node is an error, since it would protect nothing.
    peak_share: a value above this share of 65504 keeps its producer and its readers in float32.
    """
    graph = model.graph
    for island in islands:
        if not any(island.holds(node) for node in graph):
            raise LatentcError(
                f"the island {island.pattern!r} ({island.reason}) matches no node; its pattern is searched in "
                "node names, module paths and weight names"
            )
    reasons = island_reasons(graph, islands)
    highest, fits = found.peaks, found.fits
    _keep_large_values(graph, highest, peak_share * HALF_MAX, reasons)
    _keep_unfit_weights(graph, fits, reasons)
    for node in free_to_widen(graph, reasons):
        reasons[node] = SAVES_CASTS
    rows = tuple(
        IslandNode(node.name or "", node.op_type, reasons[node], _peak(node, highest))
        for node in graph
        if node in reasons
    )
    num_half = sum(any(map(real, n.outputs)) for n in graph if n not in reasons)
    narrowed = {
        v.name for n in graph if n not in reasons for v in n.inputs if v is not None and v.const_value is not None
    }
    badly_held = tuple(f for f in fits if f.to_report and (not f.fits or f.name in narrowed))
    num_casts = write_half(graph, reasons.keys())
    return HalfResult(model, HalfReport(rows, badly_held, num_casts, num_half))


def _require_typed(model: ir.Model) -> None:
    if any(value.dtype is None for node in model.graph for value in node.outputs if value.uses()):
        ShapeInferencePass()(model)
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise LatentcError(
                f"half precision: node {node.name!r} ({node.op_type}) holds a subgraph; trace without control flow"
            )
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.dtype is None and (value.uses() or value.is_graph_output()):
                raise LatentcError(
                    f"half precision: the dtype of {value.name!r} is unknown, also after shape inference"
                )
            if value is not None and value.dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16):
                raise LatentcError(f"half precision: {value.name!r} is {value.dtype.name} already; trace in float32")


def _keep_large_values(
    graph: ir.Graph, highest: Mapping[str, float], limit: float, reasons: dict[ir.Node, str]
) -> None:
    """A value above `limit` must exist in float32 only: what makes it and all that read it stay there."""
    for node in graph:
        names = [value.name or "" for value in (*node.inputs, *node.outputs) if value is not None]
        peak, name = max(((highest.get(name, 0.0), name) for name in names), default=(0.0, ""))
        if peak > limit and node not in reasons:
            reasons[node] = f"calibration: |{name}| reaches {peak:.4g}, above {limit:.4g}"


def _keep_unfit_weights(graph: ir.Graph, fits: Iterable[WeightFit], reasons: dict[ir.Node, str]) -> None:
    for fit in fits:
        if not fit.fits:
            for user in graph.initializers[fit.name].consumers():
                reasons.setdefault(
                    user, f"{fit.name}: {fit.num_overflow} of {fit.num_elements} elements overflow float16"
                )


def _peak(node: ir.Node, highest: Mapping[str, float]) -> float | None:
    names = [value.name or "" for value in (*node.inputs, *node.outputs) if value is not None]
    return max((highest[name] for name in names if name in highest), default=None)
