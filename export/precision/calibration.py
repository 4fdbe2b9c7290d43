"""The largest magnitude that each value of a graph reaches on calibration inputs, measured in float32.

Every float32 value gets |x| and its maximum appended as two small nodes, and only those scalars are graph outputs: ONNX
Runtime frees each tensor after its last use, so that memory stays that of one run, however many values are watched.
(Asking for the values themselves would hold all of them at once, or need one pass over the weights per group.)

What this does not see: sums inside a contraction. ONNX Runtime and TensorRT accumulate half-precision MatMul and Conv
in float32, so only the result must fit; a backend that accumulates in half could overflow where this finds nothing.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from latentc.errors import LatentcError

from export.precision.rules import real

_PREFIX = "peak_of::"


def peaks(model: ir.Model, calibration: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Value name -> max |x| over all samples, for every float32 input and result of a node; `model` is left as it was.

    Raises LatentcError where a value is infinite or not a number in float32 already: no precision can be chosen then.
    """
    watched = [value for node in model.graph for value in node.outputs if real(value) and value.uses()]
    watched += [value for value in model.graph.inputs if real(value)]
    watched += [value for value in model.graph.outputs if real(value) and not value.uses()]
    found = dict.fromkeys((value.name or "" for value in watched), 0.0)
    if not calibration:
        return found
    with tempfile.TemporaryDirectory(prefix="latentc-calibration-") as folder:
        path = Path(folder) / "watched.onnx"
        _save_watched(model, watched, path)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs() if output.name.startswith(_PREFIX)]
        for sample in calibration:
            for name, peak in zip(names, session.run(names, dict(sample)), strict=True):
                value = name.removeprefix(_PREFIX)
                if not np.isfinite(peak):
                    raise LatentcError(
                        f"calibration: {value!r} is {float(peak)} in float32 already; "
                        "give inputs such as the model draws from"
                    )
                found[value] = max(found[value], float(peak))
    return found


def _save_watched(model: ir.Model, watched: Sequence[ir.Value], path: Path) -> None:
    """Writes `model` with the scalar peaks as further outputs; weights go beside it one tensor at a time."""
    graph = model.graph
    num_outputs, added = len(graph.outputs), []
    for value in watched:
        magnitude = ir.node("Abs", [value])
        # Without axes all dims are reduced, in every opset.
        peak = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        magnitude.outputs[0].name = f"magnitude_of::{value.name}"
        peak.outputs[0].name = f"{_PREFIX}{value.name}"
        peak.outputs[0].dtype = ir.DataType.FLOAT
        peak.outputs[0].shape = ir.Shape(())
        added += [magnitude, peak]
        graph.extend((magnitude, peak))
        graph.outputs.append(peak.outputs[0])
    try:
        ir.save(model, path, external_data="watched.weights")
    finally:
        del graph.outputs[num_outputs:]
        graph.remove(added, safe=True)
