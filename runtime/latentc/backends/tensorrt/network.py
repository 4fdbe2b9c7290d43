"""From a graph of the bundle to a network of TensorRT: creation flags, the parser, and on 8.6 the types.

Typing. From 10.0 on a network is strongly typed: every value has the type that the graph gives it (TensorRT 11 knows
nothing else). 8.6 would choose: there each layer is pinned to the types of our graph, and the builder must obey.

The parser opens the file of external data itself, by path. Its name is checked before, so that no model can name
another file, and its hash is taken again after, so that what was parsed is what the bundle lists.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentc.backends.tensorrt.complaints import parser_complaint
from latentc.backends.tensorrt.library import Library
from latentc.backends.tensorrt.onnx_file import OnnxFile, read_onnx
from latentc.bundle import GraphBytes, map_file
from latentc.errors import BackendError, BundleError
from latentc.pages import sha256_of

_FLOAT, _HALF = 1, 10  # ONNX's numbers of element types
# Layers of 8.6 that compute nothing in floating point, or whose type is given by what they are.
_UNPINNED = ("CONSTANT", "SHAPE", "CAST", "PLUGIN", "PLUGIN_V2", "IDENTITY")


@dataclass(frozen=True)
class Network:
    """A parsed network, and what must live as long as it does."""

    definition: Any
    builder: Any
    parser: Any
    onnx: OnnxFile
    strongly_typed: bool


def network_from_graph(library: Library, graph: GraphBytes) -> Network:
    """Parses `graph`; BackendError names the node that TensorRT cannot read."""
    onnx = read_onnx(graph.model, graph.name)
    check_locations(graph, onnx)
    builder = library.make("Builder", library.log)
    flags, strongly_typed = 0, True
    if library.has("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"):
        flags = 1 << int(library.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    else:
        strongly_typed = False
        flags = 1 << int(library.member("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"))
    definition = builder.create_network(flags)
    parser = library.make("OnnxParser", definition, library.log)
    path = "" if graph.path is None else str(graph.path)
    if not parser.parse(bytes(graph.model), path):
        complaint = parser_complaint(parser, graph.name, onnx)
        library.complaints()
        raise BackendError(complaint)
    check_weights_again(graph, onnx)
    if not strongly_typed:
        _pin_types(library, definition, onnx)
    return Network(definition, builder, parser, onnx, strongly_typed)


def check_locations(graph: GraphBytes, onnx: OnnxFile) -> None:
    """Refuses a model whose weights lie anywhere but in the file that the bundle lists for it."""
    others = sorted(onnx.locations() - {graph.weights_name})
    if others:
        raise BundleError(f"graph {graph.name} names weights in {others[0]!r}; the bundle lists {graph.weights_name}")
    if onnx.locations() and graph.path is None:
        raise BundleError(f"graph {graph.name} has weights in a file, and is not in one itself")


def check_weights_again(graph: GraphBytes, onnx: OnnxFile) -> None:
    """The file that the parser has opened by path holds the bytes that were hashed when the bundle was opened."""
    if not onnx.locations() or graph.path is None:
        return
    directory = Path(graph.path).parent.resolve()
    if sha256_of(map_file(directory, graph.weights_name)) != sha256_of(graph.weights):
        raise BundleError(f"{directory / graph.weights_name} was changed while it was read; run latentc build again")


def has_half(onnx: OnnxFile) -> bool:
    """Whether anything in the graph is half precision."""
    return _HALF in onnx.types.values() or any(tensor.data_type == _HALF for tensor in onnx.initialisers)


def _pin_types(library: Library, definition: Any, onnx: OnnxFile) -> None:
    """Gives every layer of a weakly typed network the types that our graph says, or that TensorRT derived from it."""
    trt = library.module
    by_number = {_FLOAT: trt.DataType.FLOAT, _HALF: trt.DataType.HALF}
    floats = tuple(by_number.values())
    unpinned = [getattr(trt.LayerType, name) for name in _UNPINNED if hasattr(trt.LayerType, name)]
    for index in range(definition.num_layers):
        layer = definition.get_layer(index)
        if layer.type in unpinned:
            continue
        types = []
        for output in range(layer.num_outputs):
            tensor = layer.get_output(output)
            if tensor is None or tensor.is_shape_tensor:
                continue
            wanted = by_number.get(onnx.types.get(tensor.name, 0), tensor.dtype)
            if wanted in floats:
                layer.set_output_type(output, wanted)
                types.append(wanted)
        if types:
            # A layer that makes float32 of half inputs (a sum, a softmax) is an island: it computes in float32.
            layer.precision = trt.DataType.FLOAT if trt.DataType.FLOAT in types else trt.DataType.HALF
