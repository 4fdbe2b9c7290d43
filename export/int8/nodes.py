"""Writes layers in int8: y = scale_x · scale[n] · (codes_x − zero_x) @ codes + bias.

    x_codes, x_scale, x_zero = DynamicQuantizeLinear(x)               ONNX: uint8, one scale for all of x
    y = com.microsoft.MatMulIntegerToFloat(x_codes, codes, x_scale, scale, x_zero, bias)

The activation's range is taken from the activation itself, in every call: what a layer sees changes from the first
step to the last, and no range that was calibrated on one request is right for another. What several layers read (q, k
and v) is quantised once. Where one layer alone reads it, ONNX Runtime joins both nodes when it loads the graph; so that
the written and the loaded graph compute the same numbers, the product is written in ONNX Runtime's own operator, not as
ONNX's four (MatMulInteger, Cast, Mul, Add): it joins those, too, with another order of the products of scales.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.int8.layers import Layer
from export.int8.smoothing import Factors, divide, groups_of
from export.int8.weights import int8_tensors

DOMAIN = "com.microsoft"


def write_int8(model: ir.Model, layers: Sequence[Layer], factors: Factors) -> None:
    """Replaces `layers`, which are of `model`, in place; a weight that nothing reads any more goes.

    factors: of `smoothing`; used where all that reads an activation is int8.
    """
    graph = model.graph
    graph.opset_imports[DOMAIN] = 1
    for x, group in groups_of(layers).items():
        given = factors.get(x.name or "")
        divided = given if given is not None and divide(graph, x, group, given) else None
        activation = quantised_activation(x)
        group[0].node.prepend(activation)
        for layer in group:
            _replace(graph, layer, tuple(activation.outputs), divided)


def _replace(graph: ir.Graph, layer: Layer, activation: tuple[ir.Value, ...], factors: np.ndarray | None) -> None:
    weight, result = layer.weight, layer.result
    node = int8_product(graph, layer, activation, factors)
    layer.node.prepend(node)
    name = result.name
    result.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    graph.remove([*((layer.add,) if layer.add is not None else ()), layer.node], safe=True)
    node.outputs[0].name = name
    if not weight.uses():
        del graph.initializers[weight.name or ""]


def quantised_activation(x: ir.Value) -> ir.Node:
    """DynamicQuantizeLinear of `x`, with types and shapes."""
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"quantise_{x.name}")
    scalar = ir.Shape(())
    kinds = (
        ("codes", ir.DataType.UINT8, x.shape),
        ("scale", ir.DataType.FLOAT, scalar),
        ("zero", ir.DataType.UINT8, scalar),
    )
    for value, (suffix, dtype, shape) in zip(node.outputs, kinds, strict=True):
        value.name, value.dtype, value.shape = f"{x.name}_{suffix}", dtype, shape
    return node


def int8_product(
    graph: ir.Graph, layer: Layer, activation: tuple[ir.Value, ...], factors: np.ndarray | None
) -> ir.Node:
    """The product of a layer, not in the graph yet; its codes and scales are, as initializers with lazy values."""
    tensor = layer.weight.const_value
    assert tensor is not None, "a layer's weight has a value"
    codes, scales = (_initializer(graph, lazy) for lazy in int8_tensors(layer.name, tensor, layer.transposed, factors))
    codes_x, scale_x, zero_x = activation
    node = ir.node(
        "MatMulIntegerToFloat",
        [codes_x, codes, scale_x, scales, zero_x, None, layer.bias],
        domain=DOMAIN,
        name=f"int8_{layer.name}",
    )
    node.outputs[0].name = f"{layer.result.name}_int8"
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, layer.result.shape
    return node


def _initializer(graph: ir.Graph, tensor: ir.LazyTensor) -> ir.Value:
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
