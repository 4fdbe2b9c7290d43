"""Reads of an ONNX model what TensorRT's side needs: node names, value types, and where the weights lie.

A protobuf is a list of (field number, wire type, value); the numbers below are those of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). The onnx package would be 20 MB on a device for four lists.
Every read is bounded by the bytes that are there: a damaged file ends in BundleError, never in a wild read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from latentc.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1

Value: TypeAlias = int | memoryview


@dataclass(frozen=True)
class Initialiser:
    """One tensor of weights: ONNX's number of its type, its dims, and its bytes, or where they are."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    raw: memoryview | None  # None: not stored as raw bytes here
    location: str | None  # the file of external data
    offset: int
    length: int | None


@dataclass(frozen=True)
class Node:
    """An operator; `name` falls back to its first output, as TensorRT's parser calls it."""

    name: str
    op_type: str
    outputs: tuple[str, ...]


@dataclass
class OnnxFile:
    """The four lists. Nested graphs are searched for weights only."""

    nodes: list[Node] = field(default_factory=list)
    initialisers: list[Initialiser] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)  # value: ONNX's number of its element type
    inputs: list[str] = field(default_factory=list)

    def locations(self) -> set[str]:
        """The files that hold external data."""
        return {tensor.location for tensor in self.initialisers if tensor.location is not None}


def read_onnx(model: memoryview, name: str) -> OnnxFile:
    """Reads a serialized ModelProto; `name` is how errors call it."""
    found = OnnxFile()
    try:
        for number, value in _fields(model):
            if number == 7:
                _graph(_message(value), found, nested=False)
    except (IndexError, ValueError) as error:
        raise BundleError(f"graph {name} is no ONNX model: {error}") from None
    return found


def _graph(data: memoryview, found: OnnxFile, nested: bool) -> None:
    for number, value in _fields(data):
        if number == 1:
            _node(_message(value), found, nested)
        elif number == 5:
            found.initialisers.append(_tensor(_message(value)))
        elif number in (11, 12, 13) and not nested:
            name, element = _value_info(_message(value))
            found.types[name] = element
            if number == 11:
                found.inputs.append(name)


def _node(data: memoryview, found: OnnxFile, nested: bool) -> None:
    name, op_type, outputs = "", "", []
    for number, value in _fields(data):
        if number == 2:
            outputs.append(_text(value))
        elif number == 3:
            name = _text(value)
        elif number == 4:
            op_type = _text(value)
        elif number == 5:
            for kind, part in _fields(_message(value)):  # AttributeProto
                if kind in (5, 10):
                    found.initialisers.append(_tensor(_message(part)))
                elif kind in (6, 11):
                    _graph(_message(part), found, nested=True)
    if not nested:
        found.nodes.append(Node(name or (outputs[0] if outputs else ""), op_type, tuple(outputs)))


def _tensor(data: memoryview) -> Initialiser:
    name, data_type, dims, raw, external = "", 0, [], None, {}
    is_external = False
    for number, value in _fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _message(value)
        elif number == 13:
            entry = {kind: _text(part) for kind, part in _fields(_message(value))}
            external[entry.get(1, "")] = entry.get(2, "")
        elif number == 14:
            is_external = value == _EXTERNAL
    location = external.get("location", "") if is_external else None
    length = int(external["length"]) if "length" in external else None
    return Initialiser(name, data_type, tuple(dims), raw, location, int(external.get("offset", "0")), length)


def _value_info(data: memoryview) -> tuple[str, int]:
    name, element = "", 0
    for number, value in _fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for kind, part in _fields(_message(value)):  # TypeProto
                if kind == 1:
                    element = next((v for n, v in _fields(_message(part)) if n == 1 and isinstance(v, int)), 0)
    return name, element


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"a field of {size} bytes ends beyond byte {len(data)}")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError(f"a number without end at byte {position}")


def _packed(data: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _text(value: Value) -> str:
    return bytes(_message(value)).decode("utf-8", errors="replace")
