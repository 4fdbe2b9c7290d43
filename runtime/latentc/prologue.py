"""What runs once a request, before the loop: the prompt graph, then the schedule graph with all steps as its batch.

Both are there only where the export hoisted something. What they return lies in buffers that the loop
binds: prompt tensors once, and for step i block i of the rows, so that the loop moves a pointer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from latentc.backends.protocol import Array, Backend, Buffer, Engine
from latentc.dims import bound_dims, evaluated
from latentc.schema import Graph, Manifest
from latentc.trajectory import Trajectory

ROWS = "rows"  # the schedule graph's output
SCHEDULE_ROW = "schedule_row"  # the denoise graph's input
_DTYPES: Mapping[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
}


@dataclass
class PromptCache:
    """Prompt tensors of branches that come again, such as the unconditional one; kept for a process."""

    outputs: dict[bytes, dict[str, Array]] = field(default_factory=dict)
    hits: int = 0


@dataclass(frozen=True)
class Prepared:
    """All inputs of the loop but the history. `per_call` has one row for each call along the first axis."""

    constant: dict[str, Buffer]
    per_call: dict[str, Buffer]


def run_prologue(
    backend: Backend,
    engines: Mapping[str, Engine],
    manifest: Manifest,
    trajectory: Trajectory,
    cache: PromptCache | None = None,
) -> Prepared:
    """Runs what was hoisted. Without a prompt or schedule graph it uploads what the request has."""
    constant = {name: uploaded(backend, values) for name, values in trajectory.constant.items()}
    per_call = {name: uploaded(backend, rows) for name, rows in trajectory.per_call.items()}
    if "prompt" in engines:
        prompt = manifest.graphs["prompt"]
        constant |= _run_prompt(backend, engines["prompt"], prompt, trajectory.constant, cache or PromptCache())
    if "schedule" in engines:
        calls = len(next(iter(trajectory.per_call.values())))
        inputs = _schedule_inputs(manifest, trajectory, constant, calls)
        uploads = {name: uploaded(backend, values) for name, values in inputs.items()}
        rows = run_graph(backend, engines["schedule"], manifest.graphs["schedule"], uploads)[ROWS]
        num_rows, width = rows.shape
        per_call[SCHEDULE_ROW] = rows.shaped((calls, num_rows // calls, width))
    wanted = {spec.name for spec in manifest.graphs["denoise"].inputs}
    return Prepared(
        {name: buffer for name, buffer in constant.items() if name in wanted},
        {name: buffer for name, buffer in per_call.items() if name in wanted},
    )


def run_graph(backend: Backend, engine: Engine, graph: Graph, inputs: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """One run of a graph: its outputs in new buffers, as large as the manifest's symbolic dims say."""
    taken = {spec.name: inputs[spec.name] for spec in graph.inputs}
    sizes = bound_dims(graph.inputs, {name: buffer.shape for name, buffer in taken.items()})
    outputs = {
        spec.name: backend.buffer(tuple(evaluated(dim, sizes) for dim in spec.shape), _DTYPES[spec.dtype])
        for spec in graph.outputs
    }
    for name, buffer in (taken | outputs).items():
        engine.bind(name, buffer)
    engine.run()
    return outputs


def uploaded(backend: Backend, values: Array) -> Buffer:
    """A copy of `values` in the backend's memory."""
    buffer = backend.buffer(values.shape, values.dtype.type)
    buffer.write(values)
    return buffer


def _run_prompt(
    backend: Backend, engine: Engine, graph: Graph, constant: Mapping[str, Array], cache: PromptCache
) -> dict[str, Buffer]:
    """The prompt graph, branch by branch, so that a branch that was computed before is not computed again.

    Inputs are [branches, batch, …], outputs [branches · batch, …]: a branch is a contiguous block of both.
    """
    inputs = {spec.name: constant[spec.name] for spec in graph.inputs}
    branches = len(next(iter(inputs.values())))
    blocks = []
    for branch in range(branches):
        block = {name: np.ascontiguousarray(values[branch : branch + 1]) for name, values in inputs.items()}
        key = b"".join(name.encode() + repr(v.shape).encode() + v.tobytes() for name, v in sorted(block.items()))
        if key in cache.outputs:
            cache.hits += 1
        else:
            uploads = {name: uploaded(backend, values) for name, values in block.items()}
            computed = run_graph(backend, engine, graph, uploads)
            cache.outputs[key] = {name: buffer.read() for name, buffer in computed.items()}
        blocks.append(cache.outputs[key])
    return {
        spec.name: uploaded(backend, np.concatenate([block[spec.name] for block in blocks])) for spec in graph.outputs
    }


def _schedule_inputs(
    manifest: Manifest, trajectory: Trajectory, constant: Mapping[str, Buffer], calls: int
) -> dict[str, Array]:
    """The schedule graph's inputs for all calls at once, fed as the manifest says."""
    inputs: dict[str, Array] = {}
    for item in manifest.hoisting.schedule_inputs:
        if item.feed == "stack":
            steps = trajectory.per_call[item.name]  # [calls, branches, batch]
            if manifest.hoisting.rows_per_step == "one":
                steps = steps[:, :1, :1]
            inputs[item.name] = np.ascontiguousarray(steps.reshape(-1, *steps.shape[2:]))
        else:
            values = constant[item.name].read()
            inputs[item.name] = np.concatenate([values] * calls) if item.feed == "tile" else values
    return inputs
