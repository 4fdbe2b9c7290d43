"""The measurement behind docs/adr/0011: converters to half precision on small traced models. Not a test.

    python -m tests.export.precision.compare_converters trace FOLDER          the graphs, once
    python -m tests.export.precision.compare_converters own FOLDER            one converter on all of them
    python -m tests.export.precision.compare_converters autocast FOLDER       where nvidia-modelopt[onnx] is installed
    python -m tests.export.precision.compare_converters autocast-rules FOLDER      ... told our islands by node name
    python -m tests.export.precision.compare_converters common FOLDER         ... with onnxconverter-common
    python -m tests.export.precision.compare_converters ort FOLDER            onnxruntime.transformers

`flux-large` is the small FLUX with its residual stream scaled past 65504, as the real one's is in its last blocks.
"""

import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ShapeInferencePass, TopologicalSortPass

from export.passes import clean_graph
from export.precision import to_half, with_every_result_rounded
from export.precision.rules import island_reasons
from tests.export.precision.traced_models import MODELS, trace

Feed = dict[str, np.ndarray]


def own(source: Path, feed: Feed) -> onnx.ModelProto:
    return ir.to_proto(to_half(ir.load(source), [feed]).model)


def autocast(source: Path, feed: Feed) -> onnx.ModelProto:
    from modelopt.onnx.autocast import convert_to_mixed_precision

    samples = source.with_suffix(".calibration.npz")
    np.savez(samples, **feed)
    return convert_to_mixed_precision(
        str(source), low_precision_type="fp16", keep_io_types=True, calibration_data=str(samples)
    )


def autocast_with_our_rules(source: Path, feed: Feed) -> onnx.ModelProto:
    """AutoCast told which nodes our rules keep wide: is the difference in the rules, or in what it does with them?"""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    model = ir.load(source)
    names = [node.name or "" for node in island_reasons(model.graph, [])]
    samples = source.with_suffix(".calibration.npz")
    np.savez(samples, **feed)
    return convert_to_mixed_precision(
        str(source),
        low_precision_type="fp16",
        keep_io_types=True,
        calibration_data=str(samples),
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in names],
    )


def common(source: Path, feed: Feed) -> onnx.ModelProto:
    from onnxconverter_common import float16

    return float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)


def ort_float16(source: Path, feed: Feed) -> onnx.ModelProto:
    from onnxruntime.transformers import float16

    return float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)


CONVERTERS: dict[str, Callable[[Path, Feed], onnx.ModelProto]] = {
    "own": own,
    "autocast": autocast,
    "autocast-rules": autocast_with_our_rules,
    "common": common,
    "ort": ort_float16,
}


def run(path: Path, feed: Feed, level: ort.GraphOptimizationLevel) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    result: np.ndarray = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    return result.astype(np.float64)


def rounded(path: Path) -> Path:
    """The same graph with each float16 result rounded (export/precision/rounding.py), beside it."""
    model = ir.load(path)
    TopologicalSortPass()(model)  # onnxruntime.transformers appends its casts
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass()(model)
    for value in model.graph.initializers.values():
        value.dtype = value.const_value.dtype
    target = path.with_suffix(".rounded.onnx")
    ir.save(with_every_result_rounded(model), target)
    return target


def compare(converter: str, source: Path) -> str:
    arrays = np.load(source.with_suffix(".npz"))
    feed = {value.name: arrays[value.name] for value in ir.load(source).graph.inputs}
    want = run(source, feed, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    path = source.with_name(f"{source.stem}.{converter}.onnx")
    try:
        onnx.save(CONVERTERS[converter](source, feed), path)
        seconds = time.perf_counter() - start
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        errors = [
            f"{np.linalg.norm(run(p, feed, level) - want) / np.linalg.norm(want):.1e}"
            for p, level in (
                (path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
                (rounded(path), ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
            )
        ]
    except Exception as error:
        return f"{source.stem:11} {converter:9} FAILED: {type(error).__name__}: {str(error).strip()[:150]}"
    casts = sum(node.op_type == "Cast" for node in onnx.load(path).graph.node)
    size = path.stat().st_size / source.stat().st_size
    return (
        f"{source.stem:11} {converter:9} error in ONNX Runtime {errors[0]}, rounded {errors[1]}, "
        f"casts {casts}, size {size:.2f}, {seconds:.1f} s, +{memory:.0f} MiB"
    )


def main(what: str, folder: Path) -> None:
    for name in MODELS:
        source = folder / f"{name}.onnx"
        if what == "trace":
            model, feed = trace(name)
            ir.save(clean_graph(model, "tensorrt-10.3"), source)
            np.savez(source.with_suffix(".npz"), **feed)
        else:
            print(compare(what, source), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
