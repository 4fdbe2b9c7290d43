"""A graph with lazy weights for the tests of the writer: x @ w₀ @ w₁ …, and whatever else is to be written."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir


def lazy(array: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: ir.DataType) -> ir.LazyTensor:
    """A tensor that is made anew each time it is read, and not kept."""
    return ir.LazyTensor(lambda: ir.Tensor(array(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape))


def drawn(seed: int, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.LazyTensor:
    """A lazy tensor of normal numbers."""
    return lazy(
        lambda: np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype.numpy()), shape, dtype
    )


def graph_of(tensors: Mapping[str, ir.TensorProtocol]) -> ir.Model:
    """`result` = Σ of the first element of each tensor that is float32, in a graph that ONNX Runtime runs."""
    values = [
        ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        for name, tensor in tensors.items()
    ]
    shape = ir.Value(
        name="shape", const_value=ir.tensor(np.array([-1])), shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64)
    )
    x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes: list[ir.Node] = []

    def op(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"n{len(nodes)}")
        node.outputs[0].name = f"v{len(nodes)}"
        node.metadata_props["note"] = "/a/path/of/this/machine"
        nodes.append(node)
        return node.outputs[0]

    total = x
    for value in values:
        cast = op("Cast", op("Reshape", value, shape), to=ir.DataType.FLOAT.value)
        total = op("Add", total, op("ReduceMax", cast, keepdims=1))
    total = op("Identity", total)
    total.name, total.shape, total.type = "result", ir.Shape([1]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [total], nodes=nodes, initializers=[*values, shape], opset_imports={"": 18}, name="sum")
    return ir.Model(graph, ir_version=10)
