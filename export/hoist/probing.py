"""Shapes of a graph at several bindings of its symbolic dims, and the ways to stack steps that its inputs allow."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.cost import model_with_static_shapes
from export.hoist.classes import Classes, InputClass, ValueClass
from export.hoist.rows import Kind, Stacking, kinds_of
from export.hoist.sizes import Probe, evaluated, polynomial_of, symbols_in, symbols_of

NUM_STEPS = 7  # of the stacked probe; with the sizes of a step below, no two products are equal
STEP_SIZES = (2, 3, 5, 11)
WIDE_SIZES = (13, 17, 19, 23)


@dataclass(frozen=True)
class Probes:
    """The graph at the caller's dims and at small, distinct ones for the rows."""

    base: Probe
    step: Probe  # the rows' symbols are small primes, all others as in base
    wide: Probe  # the rows' symbols are other primes, all others are doubled


def probes_of(model: ir.Model, inputs: Mapping[str, InputClass], dims: Mapping[str, int]) -> tuple[ir.Model, Probes]:
    """The model bound by `dims`, and its probes."""
    symbols = row_symbols(model, inputs)
    step = {**dims, **dict(zip(symbols, STEP_SIZES, strict=False))}
    wide = {name: 2 * size for name, size in dims.items()} | dict(zip(symbols, WIDE_SIZES, strict=False))
    static = model_with_static_shapes(model, dims)
    return static, Probes(probe_of(static, dims), _probe(model, step), _probe(model, wide))


def row_symbols(model: ir.Model, inputs: Mapping[str, InputClass]) -> list[str]:
    """The symbolic dims of the schedule inputs, the leading one first."""
    values = [value for value in model.graph.inputs if inputs.get(value.name or "") is InputClass.SCHEDULE]
    ordered = sorted((axis, symbol) for value in values for symbol, axis in symbols_of(value).items())
    return list(dict.fromkeys(symbol for _, symbol in ordered))[: len(STEP_SIZES)]


def complete_shapes(model: ir.Model, probes: Probes) -> None:
    """Fills dims that the trace left unknown with an expression that other traced dims have, where all probes agree."""
    known = {
        str(dim): polynomial
        for node in model.graph
        for value in node.outputs
        for dim in (value.shape.dims if value.shape is not None else ())
        if not isinstance(dim, int) and (polynomial := polynomial_of(dim)) is not None
    } | {symbol: ((symbol,),) for value in model.graph.inputs for symbol in symbols_of(value)}
    known = {text: p for text, p in known.items() if symbols_in((p,)) <= set(probes.base.dims)}
    bound = {tuple(evaluated(p, probe.dims) for probe in _all(probes)): text for text, p in reversed(known.items())}
    for node in model.graph:
        for value in node.outputs:
            shapes = [probe.shapes.get(value.name or "") for probe in _all(probes)]
            if any(shape is None for shape in shapes) or _is_known(value.shape, known):
                continue
            columns = list(zip(*(shape for shape in shapes if shape is not None), strict=True))
            dims = [column[0] if len(set(column)) == 1 else _expression(column, bound) for column in columns]
            value.shape = ir.Shape(dims)


def _expression(sizes: tuple[int, ...], bound: Mapping[tuple[int, ...], str]) -> str | None:
    """The known expression that has these sizes at the probes, or a multiple of one (heads × batch)."""
    if sizes in bound:
        return bound[sizes]
    for known, text in bound.items():
        factors = {size / unit for size, unit in zip(sizes, known, strict=True)}
        if len(factors) == 1 and (factor := factors.pop()).is_integer() and "+" not in text:
            return f"{int(factor)}*{text}"
    return None


def _is_known(shape: ir.Shape | None, known: Collection[str]) -> bool:
    """Whether all dims of `shape` are numbers or `known` expressions."""
    return shape is not None and all(isinstance(dim, int) or str(dim) in known for dim in shape.dims)


def stackings_of(model: ir.Model, classes: Classes, probes: Probes, *, equal_rows: bool) -> list[Stacking] | str:
    """The ways to run all steps at once, or why there is none.

    `equal_rows` says that a schedule input does not vary along its symbolic dims within a step, as a timestep is the
    same for every image: then one row a step is enough for what depends on the timestep alone.
    """
    inputs = [value for value in model.graph.inputs if classes[value] is ValueClass.SCHEDULE]
    leading = {value.shape.dims[0] if value.shape is not None and len(value.shape) else None for value in inputs}
    symbols = row_symbols(model, classes.inputs)
    if not inputs:
        return []
    if not symbols or leading != {ir.SymbolicDim(symbols[0])}:
        shapes = ", ".join(f"{value.name} {value.shape}" for value in inputs)
        return f"steps cannot be stacked: the schedule's inputs have no common symbolic leading dim ({shapes})"
    first, step = symbols[0], dict(probes.step.dims)
    every = _probe(model, {**step, first: step[first] * NUM_STEPS})
    stacked = Stacking(probes.step, probes.step, every, NUM_STEPS, 0, first, frozenset((first,)), timestep_only=False)
    kinds = kinds_of(model, classes, stacked)
    lengths = {
        probes.step.shapes[value.name or ""][0]
        for value, kind in kinds.of.items()
        if kind is Kind.ROWS and classes[value] is ValueClass.SCHEDULE and not value.is_graph_input()
    }
    ways = [
        Stacking(probes.step, probes.step, every, NUM_STEPS, rows, first, frozenset((first,)), timestep_only=False)
        for rows in sorted(lengths, reverse=True)
    ]
    if equal_rows:
        single = {**step, **dict.fromkeys(symbols, 1)}
        one, every = _probe(model, single), _probe(model, {**single, first: NUM_STEPS})
        ways.append(Stacking(probes.step, one, every, NUM_STEPS, 1, first, frozenset(symbols), timestep_only=True))
    return ways


def probe_of(static: ir.Model, dims: Mapping[str, int]) -> Probe:
    """The shapes of all values of `static`, which is a model bound by `dims`."""
    values = [*static.graph.inputs, *(value for node in static.graph for value in node.outputs)]
    shapes = {
        value.name or "": tuple(value.shape.numpy())
        for value in values
        if value.shape is not None and value.shape.is_static()
    }
    return Probe(dims, shapes)


def _probe(model: ir.Model, dims: Mapping[str, int]) -> Probe:
    return probe_of(model_with_static_shapes(model, dims), dims)


def _all(probes: Probes) -> tuple[Probe, Probe, Probe]:
    return probes.base, probes.step, probes.wide
