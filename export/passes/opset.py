"""Writes the graph in another opset: each operator that differs is rewritten, or the export stops and says where.

Raising is left to onnxscript's version converter. Lowering (18 to 17 for TensorRT 8.6, 23 to 18 after decomposition) is
done here, since onnxscript has only the way up and onnx's C++ converter takes whole protos. An operator is safe to
lower when its schema at both opsets has the same inputs, outputs, attributes and defaults: then only dtypes were added
(bfloat16, float8), and the target table checks dtypes. What differs has a row in LOWERED.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from latentc.errors import LatentcError
from onnxscript import version_converter


class ConvertOpset(ir.passes.InPlacePass):
    """Converts to `opset`; LatentcError names the node that cannot be written in it, and why."""

    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        present = model.opset_imports.get("", self.opset)
        if present == self.opset:
            return ir.passes.PassResult(model, False)
        if present < self.opset:
            version_converter.convert_version(model, self.opset)
        else:
            for node in model.graph:
                if node.domain == "":
                    _lower(node, present, self.opset)
        model.opset_imports[""] = self.opset
        for node in model.graph:
            if node.domain == "":
                node.version = None
        return ir.passes.PassResult(model, True)


def _lower(node: ir.Node, present: int, opset: int) -> None:
    try:
        new, old = (onnx.defs.get_schema(node.op_type, version, "") for version in (present, opset))
    except onnx.defs.SchemaError:
        raise LatentcError(
            f"{node.op_type} {node.name!r} is not in opset {opset}, and there is no decomposition of it"
        ) from None
    if new.since_version == old.since_version:
        return
    row = LOWERED.get(node.op_type)
    if row is not None:
        why = row(node, opset)
        if why is not None:
            raise LatentcError(f"{node.op_type} {node.name!r} cannot be written in opset {opset}: {why}")
    elif _interface(new) != _interface(old):
        raise LatentcError(
            f"{node.op_type} {node.name!r} differs between opset {opset} and {present}; no rule lowers it"
        )


def _interface(schema: onnx.defs.OpSchema) -> tuple[list[tuple[str, str]], list[str], dict[str, str]]:
    return (
        [(formal.name, str(formal.option)) for formal in schema.inputs],
        [formal.name for formal in schema.outputs],
        {name: str(attribute.default_value) for name, attribute in schema.attributes.items()},
    )


def _axes_to_attribute(node: ir.Node, opset: int) -> str | None:
    """ReduceMean and its kin: axes are an input since 18. TensorRT 8.6 ignores that input and reduces ALL dims."""
    if opset >= 18:
        return None  # 20 adds booleans
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    keep_all = node.attributes.get_int("noop_with_empty_axes", 0)
    node.attributes.pop("noop_with_empty_axes", None)
    if axes is None:
        return "without axes it is the identity (noop_with_empty_axes)" if keep_all else None
    if axes.const_value is None:
        return "its axes are computed"
    numbers = [int(axis) for axis in axes.const_value.numpy().reshape(-1)]
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", numbers)
    return None


def _split_sizes(node: ir.Node, opset: int) -> str | None:
    """Split: num_outputs is new in 18, and with it a smaller last part."""
    node.attributes.pop("num_outputs", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return None
    source, parts = node.inputs[0], len(node.outputs)
    assert source is not None
    size = source.shape[node.attributes.get_int("axis", 0)] if source.shape is not None else None
    if not isinstance(size, int):
        return "the size of the dim that is split is unknown, so equal parts are not proven"
    if size % parts == 0:
        return None
    part, graph = -(-size // parts), node.graph
    assert graph is not None
    sizes = ir.tensor(np.array([part] * (parts - 1) + [size - part * (parts - 1)], np.int64))
    value = ir.Value(name=f"{node.outputs[0].name}_parts", shape=ir.Shape([parts]), const_value=sizes)
    value.type = ir.TensorType(ir.DataType.INT64)
    graph.register_initializer(value)
    node.resize_inputs(2)
    node.replace_input_with(1, value)
    return None


def _resize_defaults(node: ir.Node, opset: int) -> str | None:
    """Resize: antialias, axes and keep_aspect_ratio_policy are new in 18, half_pixel_symmetric in 19."""
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric":
        return "half_pixel_symmetric"
    if opset >= 18:
        return None
    if node.attributes.get_int("antialias", 0):
        return "antialias"
    if "axes" in node.attributes:
        return "axes"
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "keep_aspect_ratio_policy other than stretch"
    for name in ("antialias", "keep_aspect_ratio_policy"):
        node.attributes.pop(name, None)
    return None


def _pad_axes(node: ir.Node, opset: int) -> str | None:
    """Pad: axes are new in 18, the mode wrap in 19."""
    if node.attributes.get_string("mode", "constant") == "wrap":
        return "mode wrap"
    if opset >= 18:
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return "axes are given as an input"
    node.resize_inputs(min(len(node.inputs), 3))
    return None


def _scatter_reduction(node: ir.Node, opset: int) -> str | None:
    reduction = node.attributes.get_string("reduction", "none")
    return f"reduction {reduction}" if reduction in ("max", "min") and opset < 18 else None


def _cast_rounding(node: ir.Node, opset: int) -> str | None:
    """Cast: saturate (19) and round_mode (24) are about float8 and below only."""
    for name in ("saturate", "round_mode"):
        node.attributes.pop(name, None)
    return None


def _unchanged(node: ir.Node, opset: int) -> str | None:
    return None


LOWERED: dict[str, Callable[[ir.Node, int], str | None]] = {
    "Cast": _cast_rounding,
    "CastLike": _cast_rounding,
    "Pad": _pad_axes,
    "Range": _unchanged,  # 27 adds stash_type for half types
    "ReduceL1": _axes_to_attribute,
    "ReduceL2": _axes_to_attribute,
    "ReduceLogSum": _axes_to_attribute,
    "ReduceLogSumExp": _axes_to_attribute,
    "ReduceMax": _axes_to_attribute,
    "ReduceMean": _axes_to_attribute,
    "ReduceMin": _axes_to_attribute,
    "ReduceProd": _axes_to_attribute,
    "ReduceSumSquare": _axes_to_attribute,
    "Resize": _resize_defaults,
    "ScatterElements": _scatter_reduction,
    "ScatterND": _scatter_reduction,
    "Split": _split_sizes,
}
