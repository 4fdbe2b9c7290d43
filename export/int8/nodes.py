"""Writes layers in int8: y = scale_x · scale[n] · (codes_x − zero_x) @ codes + bias.

    x_codes, x_scale, x_zero = DynamicQuantizeLinear(x)               ONNX: uint8, one scale for all of x
    y = com.microsoft.MatMulIntegerToFloat(x_codes, codes, x_scale, scale, x_zero, bias)

The activation's range is taken from the activation itself, in every call: what a layer sees changes from the first step
to the last, and no range that was calibrated on one request is right for another. What several layers read (q, k and v) is
quantised once. Where one layer alone reads it, ONNX Runtime joins both nodes when it loads the graph; so that written
and loaded graph compute the same numbers, the product is written in ONNX Runtime's own operator and not as ONNX's
four (MatMulInteger, Cast, Mul, Add), which it joins as well, with another order of the products of scales.
"""

from collections.abc import Iterable

import onnx_ir as ir

from export.int8.layers import Layer
from export.int8.weights import int8_tensors

DOMAIN = "com.microsoft"


def write_int8(model: ir.Model, layers: Iterable[Layer]) -> None:
    """Replaces `layers`, which are of `model`, in place; a weight that nothing reads any more goes."""
    graph = model.graph
    graph.opset_imports[DOMAIN] = 1
    quantised: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for layer in layers:
        x, weight, result = layer.activation, layer.weight, layer.result
        if x not in quantised:
            node = quantised_activation(x)
            quantised[x] = tuple(node.outputs)
            layer.node.prepend(node)
        node = int8_product(graph, layer, quantised[x])
        layer.node.prepend(node)
        result.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
        name = result.name
        graph.remove([*((layer.add,) if layer.add is not None else ()), layer.node], safe=True)
        node.outputs[0].name = name
        if not weight.uses():
            del graph.initializers[weight.name or ""]


def quantised_activation(x: ir.Value) -> ir.Node:
    """DynamicQuantizeLinear of `x`, with types and shapes."""
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"quantise_{x.name}")
    kinds = (("uint8", ir.DataType.UINT8, x.shape), ("scale", ir.DataType.FLOAT, ir.Shape(())),
             ("zero", ir.DataType.UINT8, ir.Shape(())))  # fmt: skip
    for value, (suffix, dtype, shape) in zip(node.outputs, kinds, strict=True):
        value.name, value.dtype, value.shape = f"{x.name}_{suffix}", dtype, shape
    return node


def int8_product(graph: ir.Graph, layer: Layer, activation: tuple[ir.Value, ...], suffix: str = "") -> ir.Node:
    """The product of a layer, not in the graph yet; its codes and scales are, as initializers with lazy values."""
    tensor = layer.weight.const_value
    assert tensor is not None, "a layer's weight has a value"
    name = layer.weight.name or ""
    if f"{name}_int8{suffix}" not in graph.initializers:
        for kind, lazy in zip(("int8", "scale"), int8_tensors(name, tensor, layer.transposed), strict=True):
            graph.register_initializer(
                ir.Value(
                    name=f"{name}_{kind}{suffix}", type=ir.TensorType(lazy.dtype), shape=lazy.shape, const_value=lazy
                )
            )
    codes, scales = (graph.initializers[f"{name}_{kind}{suffix}"] for kind in ("int8", "scale"))
    codes_x, scale_x, zero_x = activation
    node = ir.node(
        "MatMulIntegerToFloat",
        [codes_x, codes, scale_x, scales, zero_x, None, layer.bias],
        domain=DOMAIN,
        name=f"int8_{layer.name}",
    )
    result = layer.result
    node.outputs[0].name = f"{result.name}_int8"
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, result.shape
    return node
