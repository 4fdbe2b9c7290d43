"""Packs all values of the schedule into one row a step, and takes them out of the row in the loop."""

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from export.hoist.build import GraphBuilder
from export.hoist.layout import ROWS, SCHEDULE_ROW, RowSlot, label_of
from export.hoist.sizes import Polynomial, symbols_of

# Of one Split. Its sizes then have 256 bytes, which onnx_ir (1.1) still writes into the graph; beyond that they go to
# the weights' file, and ONNX Runtime (1.32) refuses the graph: "Cannot parse data from external tensors".
MAX_PARTS = 32


def slots_of(values: Sequence[ir.Value]) -> tuple[RowSlot, ...]:
    """The places of `values`, whose shapes are numbers behind the leading dim, in their order."""
    slots: list[RowSlot] = []
    offset = 0
    for value in values:
        assert value.shape is not None
        assert value.dtype is not None
        tail = tuple(dim for dim in value.shape.dims[1:] if isinstance(dim, int))
        slots.append(RowSlot(value.name or "", label_of(value), offset, tail, value.dtype))
        offset += slots[-1].width
    return tuple(slots)


def pack_rows(schedule: ir.Model, slots: Sequence[RowSlot]) -> None:
    """Replaces the outputs of `schedule`, which are the values of `slots`, by the one output `rows`."""
    graph = schedule.graph
    values = list(graph.outputs)
    builder = GraphBuilder("hoist/pack/")
    columns = []
    for value, slot in zip(values, slots, strict=True):
        column = value
        if slot.dtype is not ir.DataType.FLOAT:
            column = builder.op("Cast", [column], to=ir.DataType.FLOAT.value)
        if len(slot.tail) != 1:
            column = builder.op("Reshape", [column, builder.constant([-1, slot.width])])
        columns.append(column)
    rows = builder.op("Concat", columns, axis=1) if len(columns) > 1 else builder.op("Identity", columns)
    rows.name = ROWS
    rows.type = ir.TensorType(ir.DataType.FLOAT)
    leading = values[0].shape[0] if values[0].shape is not None else None
    rows.shape = ir.Shape([leading, sum(slot.width for slot in slots)])
    _add(graph, builder)
    graph.extend(builder.nodes)
    graph.outputs[:] = [rows]


def unpack_row(
    denoise: ir.Model, slots: Sequence[RowSlot], leading: Sequence[Polynomial] | None, sources: Mapping[str, ir.Value]
) -> None:
    """Replaces the inputs of `denoise` that are called like the values of `slots` by the one input `schedule_row`.

    `leading` is given where a row stands for all rows of a step: the number of rows of each value, made of symbols that
    the inputs called like the keys of `sources` have (the values of `sources` are the traced ones).
    """
    graph = denoise.graph
    by_name = {value.name: value for value in graph.inputs}
    taken = [by_name[slot.value] for slot in slots]
    symbols = {by_name[name]: symbols_of(value) for name, value in sources.items() if name in by_name}
    builder = GraphBuilder("hoist/unpack/")
    first = 1 if leading is not None else taken[0].shape[0] if taken[0].shape is not None else None
    row = ir.Value(
        name=SCHEDULE_ROW,
        shape=ir.Shape([first, sum(slot.width for slot in slots)]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    columns = _columns(builder, row, [slot.width for slot in slots])
    for index, (column, slot, value) in enumerate(zip(columns, slots, taken, strict=True)):
        result = column
        if len(slot.tail) != 1:
            result = builder.op("Reshape", [result, builder.constant([0, *slot.tail] if slot.tail else [-1])])
        if slot.dtype is not ir.DataType.FLOAT:
            result = builder.op("Cast", [result], to=slot.dtype.value)
        if leading is not None:
            shape = builder.sizes([leading[index], *(((size,),) for size in slot.tail)], symbols)
            result = builder.op("Expand", [result, shape])
        result.shape, result.type = value.shape, value.type
        value.replace_all_uses_with(result)
    graph.inputs[:] = [value for value in graph.inputs if value not in taken]
    graph.inputs.append(row)
    _add(graph, builder)
    graph.insert_before(graph[0], builder.nodes)


def _columns(builder: GraphBuilder, row: ir.Value, widths: Sequence[int]) -> Sequence[ir.Value]:
    """`row` split into columns of these widths, at most MAX_PARTS at a time."""
    if len(widths) <= 1:
        return [row]
    if len(widths) <= MAX_PARTS:
        return builder.split(row, widths, axis=1)
    share = max(MAX_PARTS, math.ceil(len(widths) / MAX_PARTS))
    groups = [widths[start : start + share] for start in range(0, len(widths), share)]
    parts = builder.split(row, [sum(group) for group in groups], axis=1)
    return [column for part, group in zip(parts, groups, strict=True) for column in _columns(builder, part, group)]


def _add(graph: ir.Graph, builder: GraphBuilder) -> None:
    for value in builder.initializers.values():
        graph.register_initializer(value)
