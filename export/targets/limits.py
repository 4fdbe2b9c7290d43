"""Limits of an operator that the dtype tables do not hold: attributes and inputs that a parser refuses or ignores.

Each function returns why the node will not do for `target`, or None. Sources: the "Restrictions" column of the tables
in tensorrt_operators.py, and the importers themselves (onnx-tensorrt, 8.6-GA `builtin_op_importers.cpp` and
`onnx2trt_utils.cpp`, 10.1-GA `onnxOpImporters.cpp`), where they are silent about what they ignore.
"""

from collections.abc import Callable

import onnx_ir as ir

from export.targets.names import Target

Limit = Callable[[ir.Node, Target], str | None]


def _reduce_axes(node: ir.Node, target: Target) -> str | None:
    axes = _input(node, 1)
    if axes is None:
        return None
    if target == "tensorrt-8.6" and node.op_type != "ReduceSum":
        # importReduceMean calls reduceTensor without inputs.at(1): it parses, and reduces over every dim.
        return (
            "axes as an input are silently ignored: ALL dims would be reduced; write opset 17 with axes as an attribute"
        )
    return None if axes.const_value is not None else "axes must be an initializer"


def _constant_axes(index: int) -> Limit:
    def limit(node: ir.Node, target: Target) -> str | None:
        axes = _input(node, index)
        return "axes must be an initializer" if axes is not None and axes.const_value is None else None

    return limit


def _slice_axes(node: ir.Node, target: Target) -> str | None:
    """10.3 added axes as a tensor (Changelog)."""
    return _constant_axes(3)(node, target) if target == "tensorrt-8.6" else None


def _pad_axes(node: ir.Node, target: Target) -> str | None:
    if _input(node, 3) is None:
        return None
    if target == "tensorrt-8.6":
        return "axes are not read: the pads would be taken for all dims"
    if target == "tensorrt-10.3":  # 10.4 reads tensors (Changelog)
        return _constant_axes(3)(node, target)
    return None


def _resize(node: ir.Node, target: Target) -> str | None:
    attributes = node.attributes
    if attributes.get_int("antialias", 0):
        return "antialias is not supported"
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keep_aspect_ratio_policy must be stretch"
    if attributes.get_string("mode", "nearest") not in ("nearest", "linear"):
        return "mode must be nearest or linear"
    modes = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
    if attributes.get_string("coordinate_transformation_mode", "half_pixel") not in modes:
        return f"coordinate_transformation_mode must be one of {', '.join(modes)}"
    axes, source = attributes.get_ints("axes", None), _input(node, 0)
    if axes is not None and (source is None or source.shape is None or list(axes) != list(range(len(source.shape)))):
        return "axes must be 0, 1, … for all dims"
    return None


def _split(node: ir.Node, target: Target) -> str | None:
    """Without sizes the importer takes floor(dim / parts) a part, also where num_outputs asks for the ceiling."""
    source = _input(node, 0)
    if _input(node, 1) is not None or target != "tensorrt-8.6" or source is None or source.shape is None:
        return None
    size = source.shape[node.attributes.get_int("axis", 0)]
    if isinstance(size, int) and size % len(node.outputs):
        return f"{size} is split in {len(node.outputs)} equal parts: the rest would be lost; give the sizes"
    return None


def _einsum(node: ir.Node, target: Target) -> str | None:
    if target == "tensorrt-11":
        return None
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    if "..." in equation:
        return "an ellipsis is not supported"
    terms = equation.partition("->")[0].split(",")
    return "a diagonal is not supported" if any(len(set(term)) < len(term) for term in terms) else None


def _first_output_only(node: ir.Node, target: Target) -> str | None:
    return "only the first output is supported" if any(output.uses() for output in node.outputs[1:]) else None


def _pooling(node: ir.Node, target: Target) -> str | None:
    if any(dilation != 1 for dilation in node.attributes.get_ints("dilations", [])):
        return "dilations must be 1"
    kernel = node.attributes.get_ints("kernel_shape", [])
    return f"pooling over {len(kernel)} dims; 2 or 3 are supported" if kernel and len(kernel) not in (2, 3) else None


def _scatter(node: ir.Node, target: Target) -> str | None:
    reduction = node.attributes.get_string("reduction", "none")
    unsupported = node.op_type == "ScatterND" or target == "tensorrt-8.6"  # ScatterElements: since 10.0 (Changelog)
    return f"reduction {reduction} is not supported" if reduction != "none" and unsupported else None


def _top_k(node: ir.Node, target: Target) -> str | None:
    return "sorted must be 1" if not node.attributes.get_int("sorted", 1) else None


def _attention(node: ir.Node, target: Target) -> str | None:
    ranks = [len(v.shape) if v is not None and v.shape is not None else None for v in node.inputs[:3]]
    if any(rank != 4 for rank in ranks):
        return "Q, K and V must have 4 dims"
    if any(value is not None for value in node.inputs[4:]):
        return "past_key, past_value and nonpad_kv_seqlen are not supported"
    if node.attributes.get_float("softcap", 0.0):
        return "softcap is not supported"
    return _first_output_only(node, target)


def _subgraph(node: ir.Node, target: Target) -> str | None:
    return "control flow costs capture and fusion; trace without it"


LIMITS: dict[str, Limit] = {
    "Attention": _attention,
    "AveragePool": _pooling,
    "CumSum": _constant_axes(1),
    "Einsum": _einsum,
    "If": _subgraph,
    "LayerNormalization": _first_output_only,
    "Loop": _subgraph,
    "MaxPool": _pooling,
    "Pad": _pad_axes,
    "Resize": _resize,
    "Scan": _subgraph,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Slice": _slice_axes,
    "Split": _split,
    "Squeeze": _constant_axes(1),
    "TopK": _top_k,
    "Unsqueeze": _constant_axes(1),
    **{
        f"Reduce{name}": _reduce_axes
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None
