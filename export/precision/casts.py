"""Writes a choice of precision into the graph: float16 results and weights, and one shared Cast where precisions meet.

A small constant has a copy in each precision that reads it, a large one is stored once. Graph inputs and outputs keep
their dtype and name.
"""

from collections.abc import Set

import onnx_ir as ir

from export.precision.regions import LARGE_CONSTANT
from export.precision.rules import half_slots, indifferent, real
from export.precision.weights import half_tensor


def write_half(graph: ir.Graph, wide: Set[ir.Node]) -> int:
    """Turns every node outside `wide` to float16, in place; returns the number of Cast nodes that were put in."""
    half_nodes = {
        node
        for node in graph
        if node not in wide and not indifferent(node) and any(map(real, (*node.inputs, *node.outputs)))
    }
    outputs = list(graph.outputs)
    computed = [value for node in graph for value in node.outputs if real(value)]
    narrow = {value for value in computed if value.producer() in half_nodes}
    num_casts = 0
    for value in list(graph.initializers.values()):
        if real(value):
            num_casts += _place_constant(graph, value, half_nodes)
    for value in (*(v for v in graph.inputs if real(v)), *computed):
        is_narrow = value in narrow
        strangers = [
            (user, slot)
            for user, slot in value.uses()
            if not indifferent(user) and (user in half_nodes and half_slots(user)[slot]) != is_narrow
        ]
        if is_narrow:
            value.type = ir.TensorType(ir.DataType.FLOAT16)  # not .dtype: a clone shares its type objects
        if strangers or (is_narrow and value in outputs):
            num_casts += 1
            _cast(graph, value, strangers, ir.DataType.FLOAT if is_narrow else ir.DataType.FLOAT16)
    return num_casts


def _cast(graph: ir.Graph, value: ir.Value, users: list[tuple[ir.Node, int]], to: ir.DataType) -> None:
    """`users` read `value` through one Cast; a graph output is what comes out of it, under the old name."""
    node = ir.node("Cast", [value], {"to": to.value})
    result = node.outputs[0]
    result.dtype, result.shape = to, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        producer.append(node)
    name = value.name
    if to is ir.DataType.FLOAT and value.is_graph_output():
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result
        value.name, result.name = f"{name}_float16", name
    else:
        result.name = f"{name}_{'float16' if to is ir.DataType.FLOAT16 else 'float32'}"
    node.name = f"cast_{result.name}"
    for user, slot in users:
        user.replace_input_with(slot, result)


def _place_constant(graph: ir.Graph, value: ir.Value, half_nodes: Set[ir.Node]) -> int:
    """Stores one initializer in the precision of its readers; 1 if a Cast was needed, else 0."""
    tensor, name = value.const_value, value.name
    assert tensor is not None
    assert name is not None
    narrow_users = [(user, slot) for user, slot in value.uses() if user in half_nodes and half_slots(user)[slot]]
    if not narrow_users:
        return 0
    if len(narrow_users) == len(value.uses()) and not value.is_graph_output():
        value.const_value, value.type = half_tensor(name, tensor), ir.TensorType(ir.DataType.FLOAT16)
        return 0
    if tensor.size > LARGE_CONSTANT:
        _cast(graph, value, narrow_users, ir.DataType.FLOAT16)
        return 1
    copy = ir.Value(
        name=f"{name}_float16",
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=value.shape,
        const_value=half_tensor(f"{name}_float16", tensor),
    )
    graph.register_initializer(copy)
    for user, slot in narrow_users:
        user.replace_input_with(slot, copy)
    return 0
