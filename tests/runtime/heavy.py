"""The toy that draws from text, with weights large enough that its memory can be measured; about 340 MB of files.

The text encoder holds single-precision matrices, the denoiser half-precision ones and a wide activation, the decoder
convolutions: each way in which ONNX Runtime would copy weights. What they add to the toy's outputs is small.
"""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from export.live_memory import peak_activation_bytes
from tests.runtime import toy, toy_variants

WIDTH = 2048  # of the matrices
WIDE = (3072, 4096)  # the denoiser's widest value, 48 MiB
CHANNELS = 512  # of the convolutions
DIMS = {"batch": 1, "guidance_branches": 2, "slots": 5, "texts": 2, "tokens": 4}
_LITTLE = np.float32(1e-3)


def write_heavy_bundle(root: Path) -> Path:
    """Writes it; the manifest says what its graphs hold, as an export's would."""
    toy_variants.make_text(toy.write_bundle(root))
    _grow(root, "text", _matrices("float32", 8))
    _grow(root, "denoise", [*_matrices("float16", 16), *_wide()])
    _grow(root, "decode", _convolutions(8))
    manifest = toy.read_manifest(root)
    graphs = {}
    for name, graph in manifest.graphs.items():
        model = ir.load(root / graph.file)
        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        graphs[name] = msgspec.structs.replace(
            graph,
            parameters=sum(tensor.size for tensor in tensors if tensor.dtype.is_floating_point()),
            weight_bytes=sum(tensor.nbytes for tensor in tensors),
            activation_bytes=peak_activation_bytes(model, DIMS, half_bytes=4),
        )
    toy.seal(root, msgspec.structs.replace(manifest, graphs=graphs))
    return root


Part = onnx.NodeProto | onnx.TensorProto


def _grow(root: Path, name: str, parts: list[Part]) -> None:
    """Puts `parts`, a chain from `grown_in` to `grown_out`, beside the graph's own arithmetic."""
    model = onnx.load(root / f"graphs/{name}.onnx")
    graph = model.graph
    output = graph.output[0]
    source = graph.input[0].name if name == "text" else "x"
    nodes = [part for part in parts if isinstance(part, onnx.NodeProto)]
    weights = [part for part in parts if isinstance(part, onnx.TensorProto)]
    for node in graph.node:
        node.output[:] = ["small_out" if made == output.name else made for made in node.output]
    kind = output.type.tensor_type.elem_type
    axis = helper.make_node("Cast", [source], ["as_float"], to=TensorProto.FLOAT)
    flat = helper.make_node("Reshape", ["as_float", "minus_one"], ["flat"])
    mean = helper.make_node("ReduceMean", ["flat"], ["grown_in"], keepdims=1)  # [1]
    little = helper.make_node("Mul", ["grown_out", "little"], ["added_float"])
    cast = helper.make_node("Cast", ["added_float"], ["added"], to=kind)
    total = helper.make_node("Add", ["small_out", "added"], [output.name])
    graph.node.extend([axis, flat, mean, *nodes, little, cast, total])
    graph.initializer.extend([*weights, _tensor("minus_one", np.array([-1])), _tensor("little", _LITTLE.reshape(1))])
    path = root / f"graphs/{name}.onnx"
    (root / f"graphs/{name}.weights").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{name}.weights", size_threshold=80)


def _matrices(dtype: str, count: int) -> list[Part]:
    """A chain of `count` products with matrices of their own: grown_in [1] → grown_out [1]."""
    kind = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    parts: list[Part] = [
        _tensor("row", np.array([1, WIDTH])),
        helper.make_node("Expand", ["grown_in", "row"], ["row_float"]),
        helper.make_node("Cast", ["row_float"], ["h0"], to=kind),
    ]
    for i in range(count):
        parts.append(_tensor(f"matrix{i}", _values((WIDTH, WIDTH), i).astype(dtype)))
        parts.append(helper.make_node("MatMul", [f"h{i}", f"matrix{i}"], [f"p{i}"]))
        parts.append(helper.make_node("Tanh", [f"p{i}"], [f"h{i + 1}"]))
    last = "matrices_out" if dtype == "float16" else "grown_out"
    parts.append(helper.make_node("Cast", [f"h{count}"], ["h_float"], to=TensorProto.FLOAT))
    parts.append(helper.make_node("Reshape", ["h_float", "minus_one"], ["h_flat"]))
    parts.append(helper.make_node("ReduceMean", ["h_flat"], [last], keepdims=1))
    return parts


def _wide() -> list[Part]:
    """What the matrices of the denoiser made, made wide: three values of 48 MiB are held together."""
    return [
        _tensor("wide", np.array(WIDE)),
        helper.make_node("Expand", ["matrices_out", "wide"], ["wide0"]),
        helper.make_node("Tanh", ["wide0"], ["wide1"]),
        helper.make_node("Mul", ["wide0", "wide1"], ["wide2"]),
        helper.make_node("ReduceMean", ["wide2"], ["wide_mean"], keepdims=1),
        helper.make_node("Reshape", ["wide_mean", "minus_one"], ["grown_out"]),
    ]


def _convolutions(count: int) -> list[Part]:
    parts: list[Part] = [
        _tensor("square", np.array([1, CHANNELS, 4, 4])),
        helper.make_node("Expand", ["grown_in", "square"], ["h0"]),
    ]
    for i in range(count):
        parts.append(_tensor(f"kernel{i}", _values((CHANNELS, CHANNELS, 3, 3), i)))
        parts.append(helper.make_node("Conv", [f"h{i}", f"kernel{i}"], [f"p{i}"], pads=[1, 1, 1, 1]))
        parts.append(helper.make_node("Tanh", [f"p{i}"], [f"h{i + 1}"]))
    parts.append(helper.make_node("Reshape", [f"h{count}", "minus_one"], ["h_flat"]))
    parts.append(helper.make_node("ReduceMean", ["h_flat"], ["grown_out"], keepdims=1))
    return parts


def _values(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Numbers of a size that a chain of products neither loses nor blows up; one row of them, again and again."""
    row = np.random.default_rng(seed).standard_normal(shape[-1] * 8, np.float32) * 0.02
    return np.resize(row, shape)


def _tensor(name: str, values: npt.NDArray[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
