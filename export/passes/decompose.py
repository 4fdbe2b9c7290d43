"""Operators that a target does not parse, written out in primitives: by ONNX's own definition of them.

ONNX defines Attention, RMSNormalization, RotaryEmbedding, Gelu and GroupNormalization as functions, in the schema; that
text is put into the graph, so that there is nothing here that could differ from the standard. Two exceptions are
ours: GroupNormalization, whose text computes the variance as E[x²] - E[x]², which cancels where a mean is large, and is
written as torch exports it instead; and nothing is done for onnxruntime, which has them all.
"""

from typing import Protocol, cast

import numpy as np
import onnx
import onnx_ir as ir
from latentc.errors import LatentcError

from export.targets.names import Target


class _FunctionSchema(Protocol):
    """The part of onnx.defs.OpSchema that onnx's type stubs leave out."""

    since_version: int
    has_context_dependent_function: bool
    function_opset_versions: list[int]

    def get_context_dependent_function_with_opset_version(
        self, opset: int, node: bytes, types: list[bytes]
    ) -> bytes: ...
    def get_function_with_opset_version(self, opset: int) -> bytes: ...


# LayerNormalization stays: opset 17 has it, TensorRT 8.6 parses it with its statistics in float32 (stash_type 1).
_FUNCTIONS = ("Attention", "RMSNormalization", "RotaryEmbedding", "Gelu", "HardSwish", "Mish", "Swish")
_LOCAL = "latentc.decomposed"


class DecomposeFunctions(ir.passes.InPlacePass):
    """Replaces each such node by a call of a local function; InlinePass writes it out."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.target == "onnxruntime":
            return ir.passes.PassResult(model, False)
        modified = False
        opset = model.opset_imports.get("", 18)
        for index, node in enumerate(list(model.graph)):
            if node.domain != "":
                continue
            if node.op_type in _FUNCTIONS:
                _call_function(model, node, opset, index)
            elif node.op_type == "GroupNormalization":
                _write_group_normalization(model.graph, node)
            else:
                continue
            modified = True
        return ir.passes.PassResult(model, modified)


def _call_function(model: ir.Model, node: ir.Node, opset: int, index: int) -> None:
    schema = cast(_FunctionSchema, onnx.defs.get_schema(node.op_type, opset, ""))
    proto = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        types = [_type_proto(node, value).SerializeToString() for value in node.inputs]
        serialized = ir.serde.serialize_node(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(schema.since_version, serialized, types)
    else:
        text = schema.get_function_with_opset_version(max(schema.function_opset_versions))
    proto.ParseFromString(text)
    made = {name for inner in proto.node for name in inner.output}
    outputs = [name for name in proto.output if name in made]  # the text leaves out optional outputs that nobody reads
    del proto.output[:]
    proto.output.extend(outputs)
    proto.domain, proto.name, proto.overload = _LOCAL, node.op_type, str(index)
    function = ir.serde.deserialize_function(proto)
    function.opset_imports[""] = opset
    model.functions[function.identifier()] = function
    model.opset_imports[_LOCAL] = 1
    node.domain, node.overload = _LOCAL, str(index)


def _type_proto(node: ir.Node, value: ir.Value | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if value is None:
        return proto
    if value.type is None or value.shape is None:
        raise LatentcError(
            f"{node.op_type} {node.name!r}: dtype or rank of its input {value.name!r} is unknown, so it cannot be "
            "written in primitives; run shape inference first"
        )
    ir.serde.serialize_type_into(proto, value.type)
    ir.serde.serialize_shape_into(proto, value.shape)
    return proto


def _write_group_normalization(graph: ir.Graph, node: ir.Node) -> None:
    """Reshape [b, g, -1], InstanceNormalization, back, then scale and shift; x is [b, c, *spatial].

    Of opset 21: one scale a channel. The operator of opset 18 (one a group) is deprecated, and no exporter writes it.
    """
    x, scale, bias = node.inputs[0], node.inputs[1], node.inputs[2]
    assert x is not None
    if x.shape is None or not isinstance(x.shape[1], int) or x.dtype is None:
        raise LatentcError(f"GroupNormalization {node.name!r}: the number of channels of {x.name!r} is unknown")
    channels, groups, rank = x.shape[1], node.attributes["num_groups"].as_int(), len(x.shape)
    numbers = x.dtype.numpy()

    def constant(name: str, array: np.ndarray) -> ir.Value:
        name = f"{node.outputs[0].name}_{name}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        graph.register_initializer(value)
        return value

    def per_channel(value: ir.Value | None, name: str) -> ir.Value:
        assert value is not None
        return tape.op("Reshape", [value, constant(f"{name}_shape", np.array([channels] + [1] * (rank - 2), np.int64))])

    tape = ir.tape.Tape()
    grouped = tape.op("Reshape", [x, constant("groups", np.array([0, groups, -1], np.int64))])
    ones, zeros = constant("ones", np.ones(groups, numbers)), constant("zeros", np.zeros(groups, numbers))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    normal = tape.op("InstanceNormalization", [grouped, ones, zeros], {"epsilon": epsilon})
    whole = tape.op("Reshape", [normal, tape.op("Shape", [x])])
    scaled = tape.op("Mul", [whole, per_channel(scale, "scale")])
    result = tape.op("Add", [scaled, per_channel(bias, "bias")])
    result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [result])
