"""Runs the schedule graph on single steps and on stacked ones, and compares: the numerical half of the proof.

The inputs are random (timesteps within 0 ... 1000, whole numbers 0 and 1), the sizes of the rows small and distinct,
the weights the real ones.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from export.hoist.layout import Feed
from export.hoist.rows import Stacking
from export.runner import Runner

ROW_TOLERANCE = 1e-5  # relative L2; a matrix product may sum in another order for another number of rows
MAX_TIMESTEP = 1000.0
Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def mixing_values(schedule: ir.Model, feeds: Mapping[str, Feed], stacking: Stacking) -> dict[str, float]:
    """The outputs of `schedule` that are not the same for stacked steps as for single ones: name -> relative error.

    `schedule` has one output for each value of the row, before they are packed.
    """
    generator = np.random.default_rng(0)
    common: dict[str, Array] = {}
    steps: list[dict[str, Array]] = [{} for _ in range(stacking.num_steps)]
    for value in schedule.graph.inputs:
        name = value.name or ""
        if feeds[name] is Feed.STACK:
            for step in steps:
                item = _random(value, stacking.step.dims, generator, MAX_TIMESTEP)
                step[name] = np.broadcast_to(_one(item, value), item.shape) if stacking.timestep_only else item
        else:
            common[name] = _random(value, stacking.step.dims, generator, 1.0)
    tiled = {n: np.concatenate([a] * stacking.num_steps) if feeds[n] is Feed.TILE else a for n, a in common.items()}
    by_name = {value.name or "": value for value in schedule.graph.inputs}
    stacked = {
        name: np.concatenate([_one(s[name], by_name[name]) if stacking.timestep_only else s[name] for s in steps])
        for name in steps[0]
    }
    with Runner(schedule) as runner:
        every, *alone = runner.run_all([{**tiled, **stacked}, *({**common, **step} for step in steps)])
    errors = {value.name or "": 0.0 for value in schedule.graph.outputs}
    for index, single in enumerate(alone):
        for name in errors:
            rows = len(every[name]) // stacking.num_steps
            block = every[name][index * rows : (index + 1) * rows]
            errors[name] = max(errors[name], relative_l2(np.broadcast_to(block, single[name].shape), single[name]))
    return {name: error for name, error in errors.items() if not error <= ROW_TOLERANCE}


def relative_l2(value: Array, reference: Array) -> float:
    """‖value − reference‖ / ‖reference‖; NaN counts as equal to NaN alone."""
    a, b = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    norm = float(np.linalg.norm(b.ravel()))
    return float(np.linalg.norm((a - b).ravel())) / norm if norm else float(np.any(a != b))


def _one(array: Array, value: ir.Value) -> Array:
    """The first item along every symbolic dim."""
    assert value.shape is not None
    return array[tuple(slice(None) if isinstance(dim, int) else slice(0, 1) for dim in value.shape)]


def _random(value: ir.Value, dims: Mapping[str, int], generator: np.random.Generator, scale: float) -> Array:
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape.evaluate(dims))
    if value.dtype.is_floating_point():
        drawn = generator.uniform(0, scale, shape) if scale > 1 else generator.standard_normal(shape)
        return drawn.astype(value.dtype.numpy())
    return generator.integers(0, 2, shape).astype(value.dtype.numpy())
