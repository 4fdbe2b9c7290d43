"""Runs a partition as a runtime would, and the whole graph beside it."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from export.hoist import SCHEDULE_ROW, Feed, InputClass, Partition
from export.hoist.row_check import relative_l2

Arrays = dict[str, np.ndarray]


def session(model: ir.Model) -> ort.InferenceSession:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=False)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(runner: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs by name; `feeds` may hold more than the graph reads."""
    names = [output.name for output in runner.get_outputs()]
    return dict(zip(names, runner.run(None, {i.name: feeds[i.name] for i in runner.get_inputs()}), strict=True))


def random(value: ir.Value, dims: Mapping[str, int], generator: np.random.Generator) -> np.ndarray:
    shape = tuple(int(dim) for dim in value.shape.evaluate(dims))
    if value.dtype.is_floating_point():
        return generator.standard_normal(shape).astype(value.dtype.numpy())
    return generator.integers(0, 2, shape).astype(value.dtype.numpy())


def largest_error(
    partition: Partition, inputs: Mapping[str, InputClass], dims: Mapping[str, int], steps: int = 3, seed: int = 0
) -> float:
    """prompt -> schedule -> loop against the whole: the largest relative L2 over some steps with other latents each."""
    generator = np.random.default_rng(seed)
    by_class: dict[InputClass, list[ir.Value]] = {c: [] for c in InputClass}
    for value in partition.whole.graph.inputs:
        by_class[inputs[value.name or ""]].append(value)
    request = {value.name or "": random(value, dims, generator) for value in by_class[InputClass.PROMPT]}
    schedule = []
    for _ in range(steps):
        scale = generator.uniform(0, 1000)
        step = {}
        for value in by_class[InputClass.SCHEDULE]:  # one value along the symbolic dims
            drawn = np.abs(random(value, dims, generator)) * scale
            step[value.name or ""] = np.broadcast_to(one_row(drawn, value), drawn.shape).astype(value.dtype.numpy())
        schedule.append(step)
    known = dict(request)
    if partition.prompt is not None:
        known |= outputs(session(partition.prompt), request)
    rows = schedule_rows(partition, known, schedule)
    whole, denoise = session(partition.whole), session(partition.denoise)
    worst = 0.0
    for index, step in enumerate(schedule):
        latents = {value.name or "": random(value, dims, generator) for value in by_class[InputClass.LOOP]}
        expected = outputs(whole, {**request, **step, **latents})
        row = {} if rows is None else {SCHEDULE_ROW: rows[index]}
        found = outputs(denoise, {**known, **step, **latents, **row})
        assert found.keys() == expected.keys()
        worst = max(worst, *(relative_l2(found[name], expected[name]) for name in expected))
    return worst


def one_row(array: np.ndarray, value: ir.Value) -> np.ndarray:
    """The first item along every symbolic dim of `value`."""
    return array[tuple(slice(None) if isinstance(dim, int) else slice(0, 1) for dim in value.shape)]


def schedule_rows(partition: Partition, known: Arrays, steps: list[Arrays]) -> np.ndarray | None:
    """[steps, rows per step, width]: the table of a request."""
    if partition.schedule is None:
        return None
    single = partition.layout.rows_per_step == "1"
    values = {value.name: value for value in partition.whole.graph.inputs}
    feeds = {}
    for item in partition.layout.schedule_inputs:
        if item.feed is Feed.STACK:
            arrays = [step[item.name] for step in steps]
            feeds[item.name] = np.concatenate([one_row(a, values[item.name]) if single else a for a in arrays])
        elif item.feed is Feed.TILE:
            feeds[item.name] = np.concatenate([known[item.name]] * len(steps))
        else:
            feeds[item.name] = known[item.name]
    rows = outputs(session(partition.schedule), feeds)["rows"]
    assert rows.dtype == np.float32
    return rows.reshape(len(steps), -1, partition.layout.width)
