"""Which nodes stay in float32 by rule, each with its reason; what no rule names is free.

Rules come in the order of `island_reasons`; the first one that holds gives the reason. Sources: DESIGN 7; NVIDIA's
advice to keep normalisation in float32 after TensorRT issues 2922, 4223 and 4723 (black images in fp16); ONNX Runtime's
float16 converter blocks Range, Resize's scales and the like because ONNX defines no half form of them, which is read
off the operator schemas here instead of a list.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from export.precision.regions import after_weights, before_weights

# Data movement changes no number: it may run in either precision, wherever it saves casts.
MOVEMENT = frozenset((
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
))  # fmt: skip

_OPERATORS: dict[str, str] = {
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax: exp and its sum"),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization",
         "BatchNormalization", "MeanVarianceNormalization"),
        "normalisation statistics",
    ),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
         "ReduceProd", "CumSum", "GlobalAveragePool"),
        "a sum over many elements (normalisation statistics)",
    ),
    **dict.fromkeys(("Pow", "Exp", "Log", "Sqrt", "Reciprocal"), "range: squares, powers and reciprocals"),
    **dict.fromkeys(("Sin", "Cos", "Range"), "angles: half has 11 bits, too few for position or timestep x frequency"),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"), "a comparison is exact or wrong"),
    **dict.fromkeys(("Attention", "RotaryEmbedding"), "a fused operator: its softmax or angles cannot be kept apart"),
}  # fmt: skip


@dataclass(frozen=True)
class Island:
    """A family's own island: every node that `pattern` (a regular expression, searched) finds, and why.

    It is searched in the node's name, in its module path if the trace's notes are still there
    (`pkg.torch.onnx.name_scopes`, joined by '/'), and in the names of the weights that the node reads.
    """

    pattern: str
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError(f"the island {self.pattern!r} has no reason; say why its nodes stay in float32")
        re.compile(self.pattern)

    def holds(self, node: ir.Node) -> bool:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        path = "/".join(re.findall(r"'([^']*)'", scopes))
        weights = [value.name or "" for value in node.inputs if value is not None and value.const_value is not None]
        return any(re.search(self.pattern, text) for text in (node.name or "", path, *weights))


def real(value: ir.Value | None) -> bool:
    """Whether `value` is a float32 tensor: what half precision is about."""
    return value is not None and value.dtype is ir.DataType.FLOAT


def indifferent(node: ir.Node) -> bool:
    """Whether `node` reads no numbers, only sizes: it never asks for a cast."""
    return node.op_type in ("Shape", "Size")


def half_slots(node: ir.Node) -> tuple[bool, ...]:
    """Which inputs of `node` may be float16, by ONNX's schema (Resize: the picture may, the scales may not)."""
    schema = _schema(node)
    if schema is None:
        return tuple(False for _ in node.inputs)
    formal = schema.inputs
    return tuple(
        "tensor(float16)" in formal[min(index, len(formal) - 1)].types if formal else False
        for index in range(len(node.inputs))
    )


def island_reasons(graph: ir.Graph, islands: Sequence[Island]) -> dict[ir.Node, str]:
    """Node -> reason, for the nodes that stay in float32 whatever the calibration finds."""
    before, after = before_weights(graph), after_weights(graph)
    reasons: dict[ir.Node, str] = {}
    for node in graph:
        reason = _reason(node, islands, reasons, before, after)
        if reason is not None:
            reasons[node] = reason
    # A square that is summed: x·x may be written as Mul(x, x); it overflows where x passes 256.
    for node in graph:
        feeds_sum = any(user.op_type.startswith("Reduce") for output in node.outputs for user in output.consumers())
        if node not in reasons and node.op_type == "Mul" and node.inputs[0] is node.inputs[1] and feeds_sum:
            reasons[node] = "normalisation statistics"
    return reasons


def _reason(
    node: ir.Node,
    islands: Sequence[Island],
    reasons: dict[ir.Node, str],
    before: set[ir.Node],
    after: set[ir.Node],
) -> str | None:
    if indifferent(node) or not any(map(real, (*node.inputs, *node.outputs))):
        return None  # shapes and indices: no precision to choose
    for island in islands:
        if island.holds(node):
            return island.reason
    if not _has_half_form(node):
        return f"ONNX has no half-precision form of {node.op_type} here"
    if node.op_type in _OPERATORS:
        return _OPERATORS[node.op_type]
    if node.op_type in ("Mul", "Div") and any(_scales_by_statistics(value, reasons) for value in node.inputs):
        return "normalisation: the product with 1/sigma"
    if node.op_type in MOVEMENT:
        return None
    if node in before:
        return "before the first weight: solver arithmetic, embeddings of time and position"
    if node in after:
        return "after the last weight: guidance and solver arithmetic"
    return None


def _scales_by_statistics(value: ir.Value | None, reasons: dict[ir.Node, str]) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer in reasons and producer.op_type in ("Sqrt", "Reciprocal")


def _has_half_form(node: ir.Node) -> bool:
    """Whether every float32 output may be float16 instead, with at least one float32 input that follows it."""
    schema = _schema(node)
    if schema is None or not schema.outputs:
        return False
    formal = schema.outputs
    outputs = all(
        "tensor(float16)" in formal[min(index, len(formal) - 1)].types
        for index, output in enumerate(node.outputs)
        if real(output)
    )
    inputs = any(allowed and real(value) for value, allowed in zip(node.inputs, half_slots(node), strict=True))
    converts = node.op_type in ("Cast", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "CastLike")
    return outputs and inputs and any(map(real, node.outputs)) and not converts


def _schema(node: ir.Node) -> onnx.defs.OpSchema | None:
    version = node.version or (node.graph.opset_imports.get(node.domain) if node.graph is not None else None)
    try:
        return onnx.defs.get_schema(node.op_type, version or 18, node.domain)
    except onnx.defs.SchemaError:
        return None  # another domain's operator: unknown, so it stays as it is
