"""Scalars of a graph's values as further outputs, for the time of a calibration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir


@contextmanager
def watched(model: ir.Model, scalars: Sequence[tuple[ir.Value, str]]) -> Iterator[list[str]]:
    """Within, `model` also returns each (value, reduction) as a float32 scalar; yields their names.

    The reduction is an operator such as ReduceMax. Each stands right behind what makes its value, so that it is of the
    same segment (export/segments.py) and the value is let go of as early as before.
    """
    graph = model.graph
    num_outputs, added, names = len(graph.outputs), [], []
    for value, operator in scalars:
        node = ir.node(operator, [value], {"keepdims": 0})  # without axes all dims are reduced, in every opset
        result = node.outputs[0]
        result.name = f"{operator}_of::{value.name}"
        result.dtype, result.shape = ir.DataType.FLOAT, ir.Shape(())
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], node)
        else:
            producer.append(node)
        graph.outputs.append(result)
        added.append(node)
        names.append(result.name)
    try:
        yield names
    finally:
        del graph.outputs[num_outputs:]
        graph.remove(added, safe=True)
