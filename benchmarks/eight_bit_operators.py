"""Which int8 forms of a product and of a convolution are fast and exact in ONNX Runtime (ADR 0020 and 0022).

    python -m benchmarks.eight_bit_operators [--threads 2] [--repeat 20]

Random weights and activations; every form runs in turn, times are medians. Prints one JSON document.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.machine import machine

PRODUCTS = ((512, 384, 1536), (512, 768, 3072))  # rows, depth, width
CONVOLUTIONS = ((512, 64), (256, 256), (128, 256))  # channels, side
BLOCK = 64
REACH = 4.0  # of an activation: ±4 standard deviations

Part = tuple[list[Any], dict[str, np.ndarray]]  # nodes, and the initializers by name


def products(rng: np.random.Generator, depth: int, width: int) -> dict[str, Part]:
    """x [rows, depth] @ w, in each form."""
    weight = (rng.standard_normal((depth, width)) * 0.02).astype(np.float32)
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    codes = np.rint(weight / scale).astype(np.int8)
    blocks = weight.T.reshape(width, depth // BLOCK, BLOCK)
    of_block = np.abs(blocks).max(axis=-1) / 127
    in_blocks = (np.rint(blocks / of_block[..., None]) + 128).astype(np.uint8)

    def contrib(op_type: str, inputs: list[str], **attributes: int) -> list[Any]:
        return [helper.make_node(op_type, inputs, ["y"], domain="com.microsoft", **attributes)]

    unsigned = {"w": (codes.astype(int) + 128).astype(np.uint8), "s": scale, "z": np.full(width, 128, np.uint8)}
    blockwise = {"K": depth, "N": width, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    return {
        "float32": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}),
        "DynamicQuantizeMatMul, int8": (
            contrib("DynamicQuantizeMatMul", ["x", "w", "s"]), {"w": codes, "s": scale},
        ),
        "DynamicQuantizeMatMul, uint8": (contrib("DynamicQuantizeMatMul", ["x", "w", "s", "z"]), unsigned),
        "MatMulNBits, 8 bits": (
            contrib("MatMulNBits", ["x", "w", "s"], **blockwise),
            {"w": in_blocks, "s": of_block.reshape(-1).astype(np.float32)},
        ),
    }  # fmt: skip


def convolutions(rng: np.random.Generator, channels: int) -> dict[str, Part]:
    """A 3×3 convolution of `channels` to as many, in each form."""
    weight = (rng.standard_normal((channels, channels, 3, 3)) * 0.02).astype(np.float32)
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    ends = {"a": np.array(2 * REACH / 255, np.float32), "o": np.array(128, np.uint8)}
    pads = [1, 1, 1, 1]
    static = [
        helper.make_node("QuantizeLinear", ["x", "a", "o"], ["q"]),
        helper.make_node("QLinearConv", ["q", "a", "o", "w", "s", "z", "a", "o"], ["p"], pads=pads),
        helper.make_node("DequantizeLinear", ["p", "a", "o"], ["y"]),
    ]
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "b", "o"]),
        helper.make_node("ConvInteger", ["q", "w", "o"], ["i"], pads=pads),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["b", "s"], ["m"]),
        helper.make_node("Mul", ["f", "m"], ["y"]),
    ]
    return {
        "float32": ([helper.make_node("Conv", ["x", "w"], ["y"], pads=pads)], {"w": weight}),
        "QLinearConv": (static, {"w": codes, "s": scale, "z": np.zeros(channels, np.int8), **ends}),
        "ConvInteger": (dynamic, {"w": codes, "s": scale.reshape(-1, 1, 1)}),
    }


def measured(forms: dict[str, Part], x: np.ndarray, y: Sequence[int], threads: int, repeat: int) -> dict[str, Any]:
    """Form -> median milliseconds, how many times as fast as float32, relative L2 of the result against it."""
    runs: dict[str, Callable[[], np.ndarray]] = {}
    for name, (nodes, initializers) in forms.items():
        session = session_of(nodes, initializers, x.shape, y, threads)
        runs[name] = lambda session=session: session.run(None, {"x": x})[0]  # type: ignore[misc]
    results = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) * 1e3)
    exact, own = results["float32"], float(np.median(times["float32"]))
    return {
        name: {
            "ms": round(float(np.median(values)), 2),
            "times_faster": round(own / float(np.median(values)), 2),
            "relative_l2": float(np.linalg.norm(results[name] - exact) / np.linalg.norm(exact)),
        }
        for name, values in times.items()
    }


def session_of(
    nodes: list[Any], initializers: dict[str, np.ndarray], x: Sequence[int], y: Sequence[int], threads: int
) -> onnxruntime.InferenceSession:
    """x -> y, both float32."""
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    data = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return onnxruntime.InferenceSession(data, options)


def main() -> None:
    """Measures both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=20)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    document: dict[str, Any] = {"machine": machine(), "threads": given.threads, "products": {}, "convolutions": {}}
    for rows, depth, width in PRODUCTS:
        x = rng.standard_normal((rows, depth)).astype(np.float32)
        forms = products(rng, depth, width)
        found = measured(forms, x, (rows, width), given.threads, given.repeat)
        document["products"][f"[{rows}, {depth}] x [{depth}, {width}]"] = found
    for channels, side in CONVOLUTIONS:
        x = rng.standard_normal((1, channels, side, side)).astype(np.float32).clip(-REACH, REACH)
        found = measured(convolutions(rng, channels), x, x.shape, given.threads, max(given.repeat // 5, 1))
        document["convolutions"][f"{channels} channels, {side}²"] = found
    print(json.dumps(document))


if __name__ == "__main__":
    main()
