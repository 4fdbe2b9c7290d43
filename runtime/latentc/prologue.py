"""What runs once a request, before the loop: text encoders, the prompt graph, then the schedule graph with all steps
as its batch.

Prompt and schedule graph are there only where the export hoisted something. What they return lies in buffers
that the loop binds: prompt tensors once, and for step i block i of the rows, so that the loop moves a pointer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentc.backends.protocol import Array, Backend, Buffer, Engine
from latentc.conditioning import TextBatch
from latentc.dims import bound_dims, evaluated
from latentc.errors import BundleError
from latentc.prompt_cache import PromptCache, key_of
from latentc.schema import Graph, Manifest, TensorSpec
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
    """Encodes texts, and runs what was hoisted. Without a prompt or schedule graph it uploads what the request has."""
    cache = PromptCache() if cache is None else cache
    given = trajectory.constant | _run_texts(backend, engines, manifest, trajectory, cache)
    constant = {name: uploaded(backend, values) for name, values in given.items()}
    per_call = {name: uploaded(backend, rows) for name, rows in trajectory.per_call.items()}
    if "prompt" in engines:
        constant |= _run_prompt(backend, engines, manifest.graphs["prompt"], given, cache)
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


def _run_texts(
    backend: Backend, engines: Mapping[str, Engine], manifest: Manifest, trajectory: Trajectory, cache: PromptCache
) -> dict[str, Array]:
    """The outputs of the text encoders as the denoiser takes them: [branches, B, ...], zero where there is no text."""
    shape = (len(trajectory.constant["guidance_weights"]), trajectory.noise.shape[1])
    found: dict[str, Array] = {}
    for batch in trajectory.texts:
        for name, rows in _encoded(backend, engines, manifest.graphs[batch.graph], batch, cache).items():
            values = found.setdefault(name, np.zeros((*shape, *rows.shape[1:]), rows.dtype))
            if values.shape[2:] != rows.shape[1:]:
                first, second = list(values.shape[2:]), list(rows.shape[1:])
                what = f"{name} {first} of prompts and {second} of negative prompts"
                raise BundleError(f"graph {batch.graph} makes {what}; export again")
            for row, places in zip(rows, batch.places, strict=True):
                for place in places:
                    values[place] = row
    return found


def _encoded(
    backend: Backend, engines: Mapping[str, Engine], graph: Graph, batch: TextBatch, cache: PromptCache
) -> dict[str, Array]:
    """[texts, ...] by output; texts that were encoded before are not encoded again, and need no engine."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    taken = {spec.name: given[spec.name] for spec in graph.inputs}
    keys = [
        key_of(graph.file, {name: values[row] for name, values in taken.items()}) for row in range(len(batch.places))
    ]
    found = {key: outputs for key in keys if (outputs := cache.get(key)) is not None}
    new = [row for row, key in enumerate(keys) if key not in found]
    if new:
        uploads = {name: uploaded(backend, np.ascontiguousarray(values[new])) for name, values in taken.items()}
        made = run_graph(backend, engines[batch.graph], graph, uploads)
        computed = {name: buffer.read() for name, buffer in made.items()}
        for position, row in enumerate(new):
            found[keys[row]] = {name: values[position] for name, values in computed.items()}
            cache.put(keys[row], found[keys[row]])
    return {spec.name: np.stack([found[key][spec.name] for key in keys]) for spec in graph.outputs}


def _run_prompt(
    backend: Backend, engines: Mapping[str, Engine], graph: Graph, constant: Mapping[str, Array], cache: PromptCache
) -> dict[str, Buffer]:
    """The prompt graph, branch by branch, so that a branch that was computed before is not computed again.

    What has branches has them on its first axis as an input, [branches, batch, …], and on an axis of
    branches · batch as an output: a branch is a contiguous block of both. What has none (positions) is the same in all.
    """
    branches = len(constant["guidance_weights"])
    blocks = []
    for branch in range(branches):
        block = {}
        for spec in graph.inputs:
            values = constant[spec.name]
            one = values[branch : branch + 1] if _branch_axis(spec) is not None else values
            block[spec.name] = np.ascontiguousarray(one)
        key = key_of(graph.file, block)
        made = cache.get(key)
        if made is None:
            uploads = {name: uploaded(backend, values) for name, values in block.items()}
            outputs = run_graph(backend, engines["prompt"], graph, uploads)
            made = {name: buffer.read() for name, buffer in outputs.items()}
            cache.put(key, made)
        blocks.append(made)
    joined = {}
    for spec in graph.outputs:
        axis = _branch_axis(spec)
        parts = [block[spec.name] for block in blocks]
        joined[spec.name] = uploaded(backend, parts[0] if axis is None else np.concatenate(parts, axis))
    return joined


def _branch_axis(spec: TensorSpec) -> int | None:
    """The axis that the guidance branches lie along, if there is one."""
    axes = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str) and "guidance_branches" in dim]
    return axes[0] if axes else None


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
