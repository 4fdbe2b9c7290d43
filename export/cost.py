"""What a graph costs: floating-point operations, parameters, and the bytes that it reads.

Contract: an `ir.Model` or one of its nodes and the sizes of its symbolic dims go in, numbers come out; the model is not
changed and no weight is loaded. It knows nothing of devices, of time, or of what the graph computes.

Conventions, per output element `o` unless said otherwise:

    MatMul, Gemm, Conv, ConvTranspose, Einsum   2 per multiply-add, also of int8; a bias adds 1·o
    Attention                                   2 per multiply-add of QKᵀ and PV, 5 per score (softmax)
    Softmax, LogSoftmax                         5 (max, subtract, exp, sum, divide)
    Layer-, Group-, InstanceNormalization       7 (mean, subtract, square, sum, scale by 1/σ, γ, β)
    RMS-, SimplifiedLayer-, LpNormalization     4 (square, sum, scale, γ); 2 more for a residual that is added first
    BatchNormalization                          2 (it is folded to a scale and a shift)
    reductions                                  1 per *input* element
    RotaryEmbedding                             3 (two products and a sum)
    pooling                                     1 per element of the window
    element-wise                                1, whatever the function
    data movement, shapes, constants            0

What is in no row of this table is an error, never a silent zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from latentc.errors import LatentcError
from onnx_ir.passes.common import ShapeInferencePass

SOFTMAX_FLOPS = 5
LAYER_NORM_FLOPS = 7
RMS_NORM_FLOPS = 4
RESIDUAL_FLOPS = 2
BATCH_NORM_FLOPS = 2
ROTARY_FLOPS = 3

MOVEMENT = frozenset((
    "Cast", "CastLike", "CenterCropPad", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout",
    "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "NonZero", "OneHot", "Pad",
    "Range", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unique", "Unsqueeze",
))  # fmt: skip
ELEMENT_WISE = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BiasGelu", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Clip", "Cos", "Cosh", "DequantizeLinear", "Div",
    "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Hardmax", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "QuickGelu", "Reciprocal",
    "Relu", "Resize", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "TopK", "Upsample", "Where", "Xor",
))  # fmt: skip
REDUCTIONS = frozenset((
    "ArgMax", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalMaxPool", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
))  # fmt: skip
FLOPS_PER_OUTPUT = {
    **dict.fromkeys(MOVEMENT, 0),
    **dict.fromkeys(ELEMENT_WISE, 1),
    **dict.fromkeys(("Softmax", "LogSoftmax"), SOFTMAX_FLOPS),
    **dict.fromkeys(
        ("LayerNormalization", "GroupNormalization", "GroupNorm", "InstanceNormalization", "MeanVarianceNormalization"),
        LAYER_NORM_FLOPS,
    ),
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"), RMS_NORM_FLOPS),
    "SkipLayerNormalization": LAYER_NORM_FLOPS + RESIDUAL_FLOPS,
    "SkipSimplifiedLayerNormalization": RMS_NORM_FLOPS + RESIDUAL_FLOPS,
    "BatchNormalization": BATCH_NORM_FLOPS,
    "RotaryEmbedding": ROTARY_FLOPS,
}


class CostError(LatentcError):
    """A graph whose cost cannot be stated: an unknown shape, an unbound dim, an operator without a convention."""


@dataclass(frozen=True)
class NodeCost:
    """One run of one node."""

    flops: int
    parameters: int  # elements of the float and int8 initializers that the node names
    weight_bytes: int  # bytes of the initializers that the node names
    weight_bytes_read: int  # as weight_bytes, but a Gather reads no more of its table than it returns


@dataclass(frozen=True)
class GraphCost:
    """One run of one graph. A tensor that several nodes use is counted once."""

    nodes: int
    parameters: int
    weight_bytes: int
    flops: int


def cost_of_graph(model: ir.Model, dims: Mapping[str, int]) -> GraphCost:
    """The cost of one run of `model` with its symbolic dims bound by `dims`.

    Raises:
        CostError: a dim that `dims` does not bind, a shape that inference does not find, subgraphs or functions, or an
            operator without a convention. The message names the node.
    """
    if model.functions:
        raise CostError(f"graph {model.graph.name!r} calls functions; inline them before asking for its cost")
    static = model_with_static_shapes(model, dims)
    tensors = {
        id(value.const_value): value.const_value
        for value in static.graph.initializers.values()
        if value.const_value is not None and (value.uses() or value.is_graph_output())
    }
    return GraphCost(
        nodes=len(static.graph),
        parameters=sum(tensor.size for tensor in tensors.values() if _is_parameter(tensor.dtype)),
        weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        flops=sum(_flops(node, {}) for node in static.graph),
    )


def cost_of_node(node: ir.Node, dims: Mapping[str, int]) -> NodeCost:
    """The cost of one run of `node`, whose values carry their shapes (traced, or `model_with_static_shapes`)."""
    weights = {id(value): value for value in node.inputs if value is not None and value.is_initializer()}
    weight_bytes = sum(value_bytes(value, dims) for value in weights.values())
    read = weight_bytes
    if node.op_type == "Gather" and node.inputs[0] is not None and id(node.inputs[0]) in weights:
        table = value_bytes(node.inputs[0], dims)
        read -= table - min(table, value_bytes(node.outputs[0], dims))
    return NodeCost(
        flops=_flops(node, dims),
        parameters=sum(
            math.prod(_shape(value, dims, node))
            for value in weights.values()
            if value.dtype is not None and _is_parameter(value.dtype)
        ),
        weight_bytes=weight_bytes,
        weight_bytes_read=read,
    )


def _is_parameter(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point() or dtype is ir.DataType.INT8


def value_bytes(value: ir.Value, dims: Mapping[str, int]) -> int:
    """The size of `value` in bytes, at its own dtype."""
    if value.dtype is None:
        raise CostError(f"value {value.name!r} has no dtype; run shape inference on the graph first")
    return math.ceil(math.prod(_shape(value, dims, value.producer())) * value.dtype.bitwidth / 8)


def model_with_static_shapes(model: ir.Model, dims: Mapping[str, int]) -> ir.Model:
    """A copy of `model` in which every shape is a number: what ONNX infers from the inputs, else what was traced.

    The copy shares the tensors of the original. A shape that is found neither way stays unknown; asking for its cost is
    then the error.
    """
    clone = model.clone()
    traced = {}
    for value in clone.graph.inputs:
        if value.shape is None:
            raise CostError(f"input {value.name!r} has no shape")
        value.shape = ir.Shape(_bound(value.shape, dims, f"input {value.name!r}"))
    for node in clone.graph:
        for value in node.outputs:
            if value.shape is not None:
                traced[value] = value.shape.evaluate(dims)
            value.shape = None
    # A traced shape can end a chain that inference could not follow, and let it follow the next one.
    unknown = len(traced) + 1
    while True:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(clone)
        left = [value for value in traced if value.shape is None or not value.shape.is_static()]
        if not left or len(left) >= unknown:
            return clone
        unknown = len(left)
        for value in left:
            value.shape = _merged(value.shape, traced[value])


def _merged(inferred: ir.Shape | None, traced: ir.Shape) -> ir.Shape:
    """The known dims of either shape; an inferred one wins."""
    if inferred is None or len(inferred) != len(traced):
        return traced
    return ir.Shape([a if isinstance(a, int) else b for a, b in zip(inferred, traced, strict=True)])


def _bound(shape: ir.Shape, dims: Mapping[str, int], what: str) -> tuple[int, ...]:
    """`shape` with its symbols replaced by their sizes."""
    bound = shape.evaluate(dims)
    sizes = [dim for dim in bound if isinstance(dim, int)]
    if len(sizes) != len(bound):
        missing = ", ".join(sorted(bound.free_symbols())) or "an unknown dim"
        raise CostError(f"{what} has the shape {shape}; bind {missing} (bound: {', '.join(sorted(dims)) or 'nothing'})")
    return tuple(sizes)


def _shape(value: ir.Value | None, dims: Mapping[str, int], node: ir.Node | None) -> tuple[int, ...]:
    """The sizes of `value`, which `node` reads or writes."""
    where = "" if node is None else f" of node {node.name!r} ({node.op_type})"
    if value is not None and value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if value is None or value.shape is None:
        raise CostError(f"the shape of value {value and value.name!r}{where} is unknown; its cost cannot be stated")
    return _bound(value.shape, dims, f"value {value.name!r}{where}")


def _flops(node: ir.Node, dims: Mapping[str, int]) -> int:
    """The floating-point operations of one run, by the table at the top of this file."""
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise CostError(f"node {node.name!r} ({node.op_type}) has a subgraph; its cost depends on run-time values")
    if node.op_type in MOVEMENT:  # free whatever its shape is: unknown shapes of shape arithmetic are no error
        return 0
    outputs = math.prod(_shape(node.outputs[0], dims, node))
    if node.op_type in FLOPS_PER_OUTPUT:
        return FLOPS_PER_OUTPUT[node.op_type] * outputs
    if node.op_type in REDUCTIONS:
        return math.prod(_shape(node.inputs[0], dims, node))
    match node.op_type:
        case "MatMul" | "FusedMatMul" | "MatMulIntegerToFloat":
            bias = outputs if node.op_type == "MatMulIntegerToFloat" and len(node.inputs) > 6 and node.inputs[6] else 0
            return 2 * outputs * _shape(node.inputs[0], dims, node)[-1] + bias
        case "Gemm":
            transposed = node.attributes.get_int("transA", 0)
            depth = _shape(node.inputs[0], dims, node)[0 if transposed else 1]
            return 2 * outputs * depth + _bias_flops(node, outputs)
        case "Conv":  # weight: [out, in / groups, *kernel]
            return 2 * outputs * math.prod(_shape(node.inputs[1], dims, node)[1:]) + _bias_flops(node, outputs)
        case "QLinearConv":  # the same, its weight is the fourth input
            bias = outputs if len(node.inputs) > 8 and node.inputs[8] is not None else 0
            return 2 * outputs * math.prod(_shape(node.inputs[3], dims, node)[1:]) + bias
        case "ConvTranspose":  # weight: [in, out / groups, *kernel], applied once at every *input* position
            inputs = math.prod(_shape(node.inputs[0], dims, node))
            return 2 * inputs * math.prod(_shape(node.inputs[1], dims, node)[1:]) + _bias_flops(node, outputs)
        case "AveragePool" | "MaxPool" | "LpPool":
            return outputs * math.prod(node.attributes["kernel_shape"].as_ints())
        case "Einsum":
            return _einsum_flops(node, dims)
        case "Attention" | "MultiHeadAttention":
            return _attention_flops(node, dims)
    raise CostError(f"no convention for the FLOPs of node {node.name!r} ({node.domain or 'onnx'}.{node.op_type})")


def _bias_flops(node: ir.Node, outputs: int) -> int:
    return outputs if len(node.inputs) > 2 and node.inputs[2] is not None else 0


def _einsum_flops(node: ir.Node, dims: Mapping[str, int]) -> int:
    """Two per point of the index space and product; one where nothing is summed or nothing is multiplied."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    sizes: dict[str, int] = {}
    for operand, value in zip(operands, node.inputs, strict=True):
        shape = _shape(value, dims, node)
        explicit = len(operand.replace("...", ""))
        head, dots, tail = operand.partition("...")
        ellipsis = [f"...{len(shape) - explicit - i}" for i in range(len(shape) - explicit)] if dots else []
        for letter, size in zip([*head, *ellipsis, *tail], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    points = math.prod(sizes.values())
    letters = terms.replace("...", "").replace(",", "")
    kept = set(result) if arrow else {letter for letter in letters if letters.count(letter) == 1}
    summed = any(letter not in kept for letter in set(letters))
    products = len(operands) - 1
    return points * (products + (max(products, 1) if summed else 0))


def _attention_flops(node: ir.Node, dims: Mapping[str, int]) -> int:
    """Scores, softmax and weighted sum of Attention (opset 23) or com.microsoft.MultiHeadAttention, without a cache."""
    query, key, value = (_shape(node.inputs[i], dims, node) for i in range(3))
    if len(query) == 4:  # [batch, heads, tokens, head size]
        batch, heads, tokens, _ = query
        keys = key[2]
        widths = heads * (query[3] + value[3])
    elif len(query) == 3:  # [batch, tokens, heads * head size]
        heads = node.attributes.get_int("q_num_heads", node.attributes.get_int("num_heads", 0))
        if not heads:
            raise CostError(f"node {node.name!r} (Attention) has 3-d inputs and does not say how many heads they hold")
        batch, tokens, _ = query
        keys = key[1]
        groups = heads // node.attributes.get_int("kv_num_heads", heads)
        widths = query[2] + value[2] * groups
    else:
        raise CostError(f"node {node.name!r} (Attention) has inputs of rank {len(query)}; 3 and 4 have a convention")
    return 2 * batch * tokens * keys * widths + SOFTMAX_FLOPS * batch * heads * tokens * keys
