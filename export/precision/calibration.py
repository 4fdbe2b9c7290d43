"""What half precision has to hold: the largest magnitude of each value on calibration inputs, and the weights.

Every float32 value gets |x| and its maximum as two small nodes behind it, and only those scalars are outputs: each
tensor is freed after its last use, so that memory stays that of one run, however many values are watched. (Asking for
the values themselves would hold all of them at once, or need one pass over the weights per group.) The weights are
looked at as they are read for the run: once.

What this does not see: sums inside a contraction. ONNX Runtime and TensorRT accumulate half-precision MatMul and Conv
in float32, so only the result must fit; a backend that accumulates in half could overflow where this finds nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError

from export.precision.rules import real
from export.precision.weights import WeightFit, weight_fit
from export.runner import Runner
from export.segments import OnWeight

_PREFIX = "peak_of::"


@dataclass(frozen=True)
class Measured:
    """Value name -> max |x| over all samples, how each float32 weight fits, and the outputs of the last sample."""

    peaks: Mapping[str, float]
    fits: tuple[WeightFit, ...]
    outputs: Mapping[str, np.ndarray]


def measured(model: ir.Model, calibration: Sequence[Mapping[str, np.ndarray]]) -> Measured:
    """Looks at every float32 input and result of a node, and at every float32 weight; `model` is left as it was.

    Without samples nothing is run, and only weights are looked at. Raises LatentcError where a value is infinite or not
    a number in float32 already: no precision can be chosen then.
    """
    weights = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if real(value) and value.const_value is not None
    }
    fits: dict[str, WeightFit] = {}

    def look(name: str, array: np.ndarray) -> None:
        if name in weights:
            fits[name] = weight_fit(name, array)

    found, outputs = _run(model, calibration, look) if calibration else ({}, {})
    for name, tensor in weights.items():
        if name not in fits:  # small ones, and those that no segment read
            fits[name] = weight_fit(name, tensor.numpy())
    return Measured(found, tuple(fits[name] for name in weights), outputs)


def _run(
    model: ir.Model, calibration: Sequence[Mapping[str, np.ndarray]], on_weight: OnWeight
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    names = [value.name or "" for value in model.graph.outputs]
    values = [value for node in model.graph for value in node.outputs if real(value) and value.uses()]
    values += [value for value in model.graph.inputs if real(value)]
    values += [value for value in model.graph.outputs if real(value) and not value.uses()]
    found = dict.fromkeys((value.name or "" for value in values), 0.0)
    with _watched(model, values), Runner(model, on_weight=on_weight) as runner:
        for outputs in runner.run_all(calibration):
            for name in found:
                peak = float(outputs[f"{_PREFIX}{name}"])
                if not np.isfinite(peak):
                    raise LatentcError(
                        f"calibration: {name!r} is {peak} in float32 already; give inputs such as the model draws from"
                    )
                found[name] = max(found[name], peak)
    return found, {name: outputs[name] for name in names}


@contextmanager
def _watched(model: ir.Model, values: Sequence[ir.Value]) -> Iterator[None]:
    """Within, `model` has the scalar peaks of `values` as further outputs."""
    graph = model.graph
    num_outputs, added = len(graph.outputs), []
    for value in values:
        magnitude = ir.node("Abs", [value])
        # Without axes all dims are reduced, in every opset.
        peak = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        magnitude.outputs[0].name = f"magnitude_of::{value.name}"
        peak.outputs[0].name = f"{_PREFIX}{value.name}"
        peak.outputs[0].dtype = ir.DataType.FLOAT
        peak.outputs[0].shape = ir.Shape(())
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], (magnitude, peak))
        else:  # beside it, so that they are of its segment
            producer.append((magnitude, peak))
        added += [magnitude, peak]
        graph.outputs.append(peak.outputs[0])
    try:
        yield
    finally:
        del graph.outputs[num_outputs:]
        graph.remove(added, safe=True)
