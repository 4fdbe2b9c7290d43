"""Whether a target's parser reads a graph: every operator, the opset, dtypes and known limits, without the target.

A host without a GPU learns here what a Jetson would say after an hour of copying. It is a check of what is documented
and of what the importers' source shows: it proves no build. Limits of the builder (memory, kernels) are not in it.
`onnxruntime` is checked against the operator schemas of the installed onnx, and against no dtype table.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from export.targets.limits import LIMITS
from export.targets.names import Target
from export.targets.tensorrt_operators import TRT_8_6, TRT_10_3, TRT_11

_OPERATORS = {"tensorrt-8.6": TRT_8_6, "tensorrt-10.3": TRT_10_3, "tensorrt-11": TRT_11}
# 8.6: "up to Opset 17"; 10.0 to 10.3: "opset 9 to opset 20"; 10.15 and 11.0: "opset 9 to opset 24".
_HIGHEST_OPSET: dict[Target, int] = {"tensorrt-8.6": 17, "tensorrt-10.3": 20, "tensorrt-11": 24}
_ORT_DOMAINS = ("com.microsoft", "ai.onnx.ml")

_DTYPES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.DOUBLE: "FP32",  # "will attempt to cast DOUBLE down to FLOAT", in all versions
}


@dataclass(frozen=True)
class Finding:
    """One thing that the target's parser will not take: where, what, and what can be done."""

    node: str  # "" for the graph as a whole
    operator: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.operator} {self.node!r}: " if self.node else ""
        return f"{where}{self.problem}; {self.remedy}"


def check_target(model: ir.Model, target: Target) -> list[Finding]:
    """Everything that `target` does not take, in the graph's order; an empty list: nothing is known against it.

    Shapes and dtypes are those that the graph carries: a value without them is not judged.
    """
    return [*_opset(model, target), *(finding for node in model.graph for finding in _node(model, node, target))]


def _opset(model: ir.Model, target: Target) -> Iterator[Finding]:
    highest = _HIGHEST_OPSET.get(target, onnx.defs.onnx_opset_version())
    present = model.opset_imports.get("", 0)
    if present > highest:
        yield Finding(
            "", "", f"opset {present}, and {target} reads {highest} at most", f"export with --target {target}"
        )
    if model.functions:
        yield Finding("", "", "the model has local functions", "inline them (clean_graph does)")


def _node(model: ir.Model, node: ir.Node, target: Target) -> Iterator[Finding]:
    name = node.name or (node.outputs[0].name if node.outputs else "") or "?"
    if target == "onnxruntime":
        if node.domain not in _ORT_DOMAINS and not _has_schema(node, model.opset_imports.get(node.domain)):
            opset = model.opset_imports.get(node.domain)
            yield Finding(
                name, node.op_type, f"no such operator in domain {node.domain!r}, opset {opset}", "trace without it"
            )
        return
    operators = _OPERATORS[target]
    if node.domain not in ("", "ai.onnx"):
        yield Finding(name, node.op_type, f"domain {node.domain!r} needs a plugin", "export with --target " + target)
        return
    if node.op_type not in operators:
        since = [other for other, table in _OPERATORS.items() if node.op_type in table]
        known = f"only {', '.join(since)} parse it" if since else "no TensorRT parses it"
        yield Finding(name, node.op_type, f"not parsed by {target} ({known})", "trace with opset 18 and clean_graph")
        return
    for label, dtype in _dtypes(node):
        if dtype not in _accepted(operators[node.op_type], target):
            allowed = ", ".join(sorted(operators[node.op_type]))
            yield Finding(
                name, node.op_type, f"{label} is {dtype}; {target} takes {allowed}", "cast it, or trace otherwise"
            )
    limit = LIMITS.get(node.op_type)
    why = limit(node, target) if limit is not None else None
    if why is not None:
        yield Finding(name, node.op_type, f"{target}: {why}", "clean_graph writes what can be written")


def _accepted(dtypes: frozenset[str], target: Target) -> frozenset[str]:
    """8.6 casts INT64 down to INT32 ("limited support"), shape arithmetic included."""
    if target != "tensorrt-8.6" or "INT32" not in dtypes:
        return dtypes
    return dtypes | {"INT64"}


def _dtypes(node: ir.Node) -> Iterator[tuple[str, str]]:
    """(name, dtype) of what the table's column speaks of: the data, not axes, indices, sizes or conditions.

    That is the first input (for Where the second: the first is its condition; for Gemm, Conv and MatMul all are alike),
    and for what only makes data its output.
    """
    position = {"Where": 1}.get(node.op_type, 0)
    makes_data = node.op_type in (
        "Constant",
        "ConstantOfShape",
        "Range",
        "EyeLike",
        "RandomNormal",
        "RandomUniform",
        "Cast",
    )
    values = [node.outputs[0]] if makes_data else list(node.inputs[position : position + 1])
    if node.op_type == "Cast":
        values.append(node.outputs[0])
    for value in dict.fromkeys(values):
        if value is not None and value.dtype is not None:
            yield value.name or "?", _DTYPES.get(value.dtype, value.dtype.name)


def _has_schema(node: ir.Node, opset: int | None) -> bool:
    try:
        onnx.defs.get_schema(node.op_type, opset or onnx.defs.onnx_opset_version(), node.domain)
    except onnx.defs.SchemaError:
        return False
    return True
