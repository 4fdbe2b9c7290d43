"""Puts the bundle's weights into an engine whose plan has none.

The full library reads them out of the ONNX file as it did for the build. The lean runtime has no parser: there each
weight is set by name, out of the bytes that were hashed with the bundle.
"""

from typing import Any

import numpy as np

from latentc.backends.tensorrt.library import Library
from latentc.backends.tensorrt.network import check_locations, check_weights_again
from latentc.backends.tensorrt.onnx_file import Initialiser, read_onnx
from latentc.bundle import GraphBytes
from latentc.errors import BackendError

_DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}


def refit(library: Library, engine: Any, graph: GraphBytes) -> None:
    """Fills `engine`; BackendError if a weight is missing."""
    trt = library.module
    onnx = read_onnx(graph.model, graph.name)
    check_locations(graph, onnx)
    refitter = library.make("Refitter", engine, library.log)
    kept: list[Any] = []
    if hasattr(trt, "OnnxParserRefitter"):
        parser = library.make("OnnxParserRefitter", refitter, library.log)
        path = "" if graph.path is None else str(graph.path)
        if not parser.refit_from_bytes(bytes(graph.model), path):
            raise BackendError(f"graph {graph.name}: its weights do not fit its engine: {_reason(library, parser)}")
        check_weights_again(graph, onnx)
    else:
        kept = _set_by_name(trt, refitter, graph, {tensor.name: tensor for tensor in onnx.initialisers})
    filled = refitter.refit_cuda_engine()
    del kept
    if not filled:
        reason = "; ".join(library.complaints()) or f"missing {', '.join(refitter.get_missing_weights()[:5])}"
        raise BackendError(f"graph {graph.name}: its engine cannot be filled with weights: {reason}")


def _set_by_name(trt: Any, refitter: Any, graph: GraphBytes, tensors: dict[str, Initialiser]) -> list[Any]:
    """Names the weights to the refitter, which reads them later: what is returned must live until then."""
    kept = []
    for name in refitter.get_missing_weights():
        if name not in tensors:
            raise BackendError(
                f"graph {graph.name}: the lean runtime cannot fill {name!r}, which is computed from weights; "
                "build without --strip-weights"
            )
        values = _values(tensors[name], graph)
        kept += [values, trt.Weights(values)]
        if not refitter.set_named_weights(name, kept[-1]):
            raise BackendError(f"graph {graph.name}: the engine does not take the weights {name!r}")
    return kept


def _values(tensor: Initialiser, graph: GraphBytes) -> np.ndarray[Any, Any]:
    """The values of an initialiser, flat: a view of the bundle's bytes."""
    if tensor.data_type not in _DTYPES:
        raise BackendError(f"graph {graph.name}: weights {tensor.name!r} have ONNX's type {tensor.data_type}")
    dtype = np.dtype(_DTYPES[tensor.data_type])
    count = int(np.prod(tensor.dims, dtype=np.int64))
    data = graph.weights if tensor.location is not None else tensor.raw
    offset = tensor.offset if tensor.location is not None else 0
    if data is None or offset + count * dtype.itemsize > len(data):
        raise BackendError(f"graph {graph.name}: weights {tensor.name!r} are not where the model says")
    values = np.frombuffer(data, dtype, count, offset)
    aligned = values.ctypes.data % dtype.itemsize == 0
    return values if aligned else values.copy()


def _reason(library: Library, parser: Any) -> str:
    reasons = [str(parser.get_error(index).desc()) for index in range(min(parser.num_errors, 3))]
    return "; ".join(reasons or library.complaints() or ["it gives no reason"])
