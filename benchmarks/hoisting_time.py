"""Time of one step in ONNX Runtime on the CPU, hoisted against not, interleaved.

Both graphs run with all of ONNX Runtime's optimisations on one thread, in turn, the order swapped every round, so that
what else the machine does falls on both. Time is that thread's processor time: on a machine that others use, the clock
on the wall says how long the thread waited. The ratio is that of the medians; its spread is of the rounds' ratios.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import onnx_ir as ir
import onnxruntime

from benchmarks.hoisting_denoiser import Denoiser
from benchmarks.hoisting_half import Arrays, loop_inputs
from export.hoist import CostModel, partition


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of one thread's processor time; quartiles are (lower, upper)."""

    model: str
    rounds: int
    whole_ms: float  # medians
    whole_quartiles_ms: tuple[float, float]
    whole_min_ms: float
    hoisted_ms: float
    hoisted_quartiles_ms: tuple[float, float]
    hoisted_min_ms: float
    ratio_of_medians: float  # hoisted / whole: below 1 is a gain
    ratio_quartiles: tuple[float, float]  # of the rounds
    schedule_of_one_step_ms: float  # the schedule graph, which runs once a request, on one step
    loads_before: tuple[float, float, float]  # of the machine, 1, 5 and 15 minutes


def step_times(denoiser: Denoiser, graph: ir.Model, *, rounds: int) -> StepTimes:
    """Times `graph`, which is `denoiser` with random weights, at the sizes of its `dims`."""
    loads = os.getloadavg()
    parts = partition(graph, denoiser.classes, CostModel(denoiser.dims), check_rows=False)
    sample = inputs_at(graph, denoiser)
    known = loop_inputs(parts, sample)
    assert parts.schedule is not None, "a denoiser whose modulation does not leave the loop is not worth timing"
    whole, hoisted = session(graph), session(parts.denoise)
    for warm_up in (whole, hoisted):
        run_ms(warm_up, known)
    times: list[tuple[float, float]] = []
    for index in range(rounds):
        if index % 2:
            after = run_ms(hoisted, known)
            times.append((run_ms(whole, known), after))
        else:
            before = run_ms(whole, known)
            times.append((before, run_ms(hoisted, known)))
    whole_ms, hoisted_ms = [t[0] for t in times], [t[1] for t in times]
    return StepTimes(
        model=denoiser.name,
        rounds=rounds,
        whole_ms=round(median(whole_ms), 1),
        whole_quartiles_ms=quartiles(whole_ms, 1),
        whole_min_ms=round(min(whole_ms), 1),
        hoisted_ms=round(median(hoisted_ms), 1),
        hoisted_quartiles_ms=quartiles(hoisted_ms, 1),
        hoisted_min_ms=round(min(hoisted_ms), 1),
        ratio_of_medians=round(median(hoisted_ms) / median(whole_ms), 3),
        ratio_quartiles=quartiles([after / before for before, after in times], 3),
        schedule_of_one_step_ms=round(schedule_ms(parts.schedule, known), 1),
        loads_before=(round(loads[0], 1), round(loads[1], 1), round(loads[2], 1)),
    )


def inputs_at(graph: ir.Model, denoiser: Denoiser) -> Arrays:
    """Random inputs of the sizes that the cut was made for, one timestep in all of them."""
    generator = np.random.default_rng(0)
    found: Arrays = {}
    for value in graph.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = tuple(int(str(dim)) for dim in value.shape.evaluate(denoiser.dims))
        drawn = (
            generator.standard_normal(shape) if value.dtype.is_floating_point() else generator.integers(0, 99, shape)
        )
        found[value.name or ""] = np.asarray(drawn).astype(value.dtype.numpy())
    found["timestep"] = np.full_like(found["timestep"], denoiser.timestep_scale / 2)
    return found


def schedule_ms(schedule: ir.Model, known: Arrays) -> float:
    """The median of three runs after one that warms up."""
    runner = session(schedule)
    run_ms(runner, known)
    return median(run_ms(runner, known) for _ in range(3))


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    """As a runtime would open it, with all optimisations, but for one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the calling thread
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="latentc-") as directory:
        path = Path(directory) / "graph.onnx"
        ir.save(model, path, external_data="graph.weights")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_ms(runner: onnxruntime.InferenceSession, known: Arrays) -> float:
    """One run, in milliseconds of this thread; `known` may hold more than the graph reads."""
    inputs = {value.name: known[value.name] for value in runner.get_inputs()}
    start = time.thread_time()
    runner.run(None, inputs)
    return (time.thread_time() - start) * 1e3


def quartiles(values: list[float], digits: int) -> tuple[float, float]:
    """(lower, upper)."""
    lower, _, upper = quantiles(values, n=4)
    return round(lower, digits), round(upper, digits)
