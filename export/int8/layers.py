"""The layers of a graph that int8 is for: products of an activation with a weight, and the bias behind them.

Not the products of attention, which have no weight, and not small ones: they cost little, and the first and the last
layer of a denoiser are among them. Convolutions are not quantised: a denoiser has one or two of them at its ends.
"""

from dataclasses import dataclass

import onnx_ir as ir

LEAST_ELEMENTS = 16_384  # of a weight that is worth quantising its activation


@dataclass(frozen=True)
class Layer:
    """y = x @ weight (+ bias); `name` is the weight's."""

    name: str
    node: ir.Node  # MatMul or Gemm
    add: ir.Node | None  # what adds the bias behind a MatMul
    bias: ir.Value | None
    transposed: bool  # the weight is [N, K]

    @property
    def activation(self) -> ir.Value:
        """x: [..., K]."""
        return _given(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        """[K, N], or [N, K] if transposed."""
        return _given(self.node, 1)

    @property
    def result(self) -> ir.Value:
        """y: [..., N], with the bias."""
        return (self.add or self.node).outputs[0]


def layers_of(model: ir.Model) -> tuple[Layer, ...]:
    """In the graph's order. A weight that several nodes read makes several layers, the later ones with a number."""
    found: list[Layer] = []
    num_named: dict[str, int] = {}
    for node in model.graph:
        if not _is_product(node):
            continue
        name = _given(node, 1).name or ""
        num_named[name] = num_named.get(name, 0) + 1
        unique = name if num_named[name] == 1 else f"{name}#{num_named[name]}"
        if node.op_type == "Gemm":
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            found.append(Layer(unique, node, None, bias, bool(node.attributes.get_int("transB", 0))))
        else:
            add, bias = _bias_behind(node)
            found.append(Layer(unique, node, add, bias, False))
    return tuple(found)


def _is_product(node: ir.Node) -> bool:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or not weight.is_initializer() or weight.const_value is None:
        return False
    is_weight = weight.dtype is ir.DataType.FLOAT and len(weight.const_value.shape) == 2
    if not is_weight or weight.const_value.size < LEAST_ELEMENTS or x.is_initializer():
        return False
    if node.op_type == "MatMul":
        return x.shape is None or len(x.shape) >= 2  # a vector times a matrix is the solver's
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return plain and not node.attributes.get_int("transA", 0) and (bias is None or _is_bias(bias, _width(node)))


def _bias_behind(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add that alone reads a product and adds one number a channel, and these numbers."""
    product = node.outputs[0]
    readers = list(product.uses())
    if len(readers) != 1 or product.is_graph_output() or readers[0][0].op_type != "Add" or readers[0][0].domain:
        return None, None
    add, slot = readers[0]
    bias = add.inputs[1 - slot]
    return (add, bias) if bias is not None and _is_bias(bias, _width(node)) else (None, None)


def _is_bias(value: ir.Value, width: int) -> bool:
    return (
        value.is_initializer()
        and value.const_value is not None
        and value.dtype is ir.DataType.FLOAT
        and tuple(value.const_value.shape.numpy()) == (width,)
    )


def _width(node: ir.Node) -> int:
    tensor = _given(node, 1).const_value
    assert tensor is not None, "a layer's weight has a value"
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    return int(tensor.shape.numpy()[0 if transposed else 1])


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, f"{node.name} has an input {index}"
    return value
