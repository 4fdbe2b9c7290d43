"""A graph in ONNX Runtime piece by piece, so that no more than some of its weights are in memory at once.

The nodes are taken in their order; a segment ends where the next node's weights would be too many. Each segment is a
graph of its own, whose weights go to ONNX Runtime as one buffer that it uses in place: nothing is written to a disk,
and no limit of a protobuf holds. A graph with few weights is one segment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.passes.common import ShapeInferencePass

from export.arrays import as_tensor

SEGMENT_BYTES = 256 << 20
_INLINE_BYTES = 256  # ONNX Runtime wants the contents of shapes and axes in the graph itself
_ALIGNMENT = 64
_BUFFER = "weights"
_MAKES_A_SEQUENCE = frozenset(
    ("SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty", "SequenceMap")
)

OnWeight = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class Segment:
    """Some nodes of a graph, what they read of the others, and what the others read of them."""

    nodes: tuple[ir.Node, ...]
    initializers: tuple[ir.Value, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def segments_of(model: ir.Model, most_bytes: int = SEGMENT_BYTES) -> tuple[Segment, ...]:
    """`model`, whose nodes are in a topological order, in pieces of at most `most_bytes` of weights, or of one node."""
    groups: list[list[ir.Node]] = [[]]
    held: set[ir.Value] = set()
    num_bytes = 0
    joined = _joined_to_the_one_before(model.graph)
    for node in model.graph:
        new = {value for value in node.inputs if value is not None and value.is_initializer()} - held
        more = sum(_num_bytes(value) for value in new)
        if groups[-1] and num_bytes + more > most_bytes and more > _INLINE_BYTES and node not in joined:
            groups.append([])
            held, num_bytes = set(), 0
            new = {value for value in node.inputs if value is not None and value.is_initializer()}
            more = sum(_num_bytes(value) for value in new)
        groups[-1].append(node)
        held |= new
        num_bytes += more
    place = {node: index for index, group in enumerate(groups) for node in group}
    return tuple(_segment(model.graph, index, group, place) for index, group in enumerate(groups))


def _joined_to_the_one_before(graph: ir.Graph) -> set[ir.Node]:
    """The nodes up to the last reader of a sequence, which is no tensor and cannot pass between segments.

    A trace has them before it is cleaned: torch's split is SplitToSequence with SequenceAt behind it.
    """
    place = {node: index for index, node in enumerate(graph)}
    joined: set[ir.Node] = set()
    last = -1
    for node, index in place.items():
        if index <= last:
            joined.add(node)
        if node.op_type in _MAKES_A_SEQUENCE:
            readers = [place[user] for value in node.outputs for user in value.consumers()]
            last = max(last, *readers) if readers else last
    return joined


def _segment(graph: ir.Graph, index: int, nodes: Sequence[ir.Node], place: dict[ir.Node, int]) -> Segment:
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    inputs = [value for value in read if not value.is_initializer() and _made_in(value, place) != index]
    made = [value for node in nodes for value in node.outputs]
    outputs = [
        value for value in made if value.is_graph_output() or any(place[user] != index for user in value.consumers())
    ]
    return Segment(
        nodes=tuple(nodes),
        initializers=tuple(value for value in read if value.is_initializer()),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def _made_in(value: ir.Value, place: dict[ir.Node, int]) -> int | None:
    producer = value.producer()
    return None if producer is None else place[producer]


def complete_types(model: ir.Model, segments: Sequence[Segment]) -> None:
    """Finds the dtypes of values that pass from one segment to another, where a pass left them open."""
    crossing = (value for segment in segments[1:] for value in segment.inputs)
    if any(value.dtype is None for value in crossing):
        ShapeInferencePass()(model)
        for node in model.graph:
            if node.op_type in _MAKES_A_SEQUENCE:  # onnx_ir 1.1 gives a sequence the type of its tensors
                node.outputs[0].type = node.outputs[0].shape = None


class OpenSegment:
    """A session of a segment, run node by node as it is written; its weights are read once.

    `on_weight` is told each large weight, by name, flat.
    """

    def __init__(self, model: ir.Model, segment: Segment, on_weight: OnWeight | None = None) -> None:
        graph = ir.GraphView(
            segment.inputs,
            segment.outputs,
            nodes=segment.nodes,
            initializers=segment.initializers,
            opset_imports=model.graph.opset_imports,
            name=model.graph.name or "segment",
        ).clone()
        self._weights = _moved_weights(graph, on_weight)  # the session reads it for as long as it lives
        part = ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # memory goes back when a segment goes
        # Half-precision weights are widened by nodes that depend on nothing: in the default order all of them come
        # first, and in this one each when it is needed (onnxruntime 1.31).
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        options.add_external_initializers_from_files_in_memory([_BUFFER], [self._weights], [len(self._weights)])
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(part).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name; `known` may hold more than the segment reads."""
        results = self._session.run(self.outputs, {name: known[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))


def _moved_weights(graph: ir.Graph, on_weight: OnWeight | None) -> np.ndarray:
    """The weights of `graph` in one buffer; the graph then says where in it they lie."""
    places: list[tuple[ir.Value, ir.TensorProtocol, int]] = []
    end = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None, f"{value.name} has no value"
        if tensor.nbytes > _INLINE_BYTES:
            places.append((value, tensor, end))
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        elif isinstance(tensor, ir.ExternalTensor):  # small, and yet beside the graph in its file
            array = np.empty(tensor.nbytes, np.uint8)
            _copy(tensor, array)
            contents = array.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
            value.const_value = ir.Tensor(contents, dtype=tensor.dtype, name=value.name)
    buffer = _contents(places[0][1]) if len(places) == 1 else np.empty(max(end, 1), np.uint8)
    for value, tensor, offset in places:
        target = buffer[offset : offset + tensor.nbytes]
        if len(places) > 1:
            _copy(tensor, target)
        if on_weight is not None:
            on_weight(value.name or "", target.view(tensor.dtype.numpy()))
        value.const_value = ir.ExternalTensor(
            _BUFFER, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
        )
    return buffer


def _contents(tensor: ir.TensorProtocol) -> np.ndarray:
    """The bytes of `tensor`, uint8: the memory that it was read into, where that is possible. An embedding is large."""
    if not isinstance(tensor, ir.ExternalTensor):
        array = tensor.numpy()
        if array.flags.c_contiguous:
            return array.reshape(-1).view(np.uint8)
    buffer = np.empty(tensor.nbytes, np.uint8)
    _copy(tensor, buffer)
    return buffer


def _copy(tensor: ir.TensorProtocol, target: np.ndarray) -> None:
    """The bytes of `tensor` into `target`, uint8; nothing of a file stays mapped."""
    if isinstance(tensor, ir.ExternalTensor):
        with open(tensor.path, "rb", buffering=0) as file:
            file.seek(tensor.offset or 0)
            num_bytes = file.readinto(target.data)
        assert num_bytes == len(target), f"{tensor.path} ends within {tensor.name}"
        return
    array = tensor.numpy()
    shaped = target.view(array.dtype).reshape(array.shape)
    if array.flags.c_contiguous:
        np.copyto(shaped, array)
    else:  # torch copies a transposed matrix five times as fast as numpy: in blocks, and in threads
        torch.from_numpy(shaped).copy_(as_tensor(array))


def _num_bytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0
