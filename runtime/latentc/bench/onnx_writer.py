"""Writes the smallest ONNX models that a ceiling needs: one operator on inputs of fixed shape.

The counterpart of backends/tensorrt/onnx_file.py; numbers of fields as in onnx.proto. Opset 17 and IR version 8 are
what every backend reads.
"""

from latentc.bundle import GraphBytes

ELEMENTS = {"float32": 1, "float16": 10}
_OPSET, _IR_VERSION = 17, 8


def one_operator(
    name: str, op_type: str, shapes: list[tuple[int, ...]], result: tuple[int, ...], dtype: str
) -> GraphBytes:
    """A model whose inputs are x0, x1, … of `shapes` and whose output y is `op_type` of them."""
    names = [f"x{index}" for index in range(len(shapes))]
    node = b"".join(_message(1, each.encode()) for each in names)
    node += _message(2, b"y") + _message(3, op_type.encode()) + _message(4, op_type.encode())
    graph = _message(1, node) + _message(2, name.encode())
    graph += b"".join(_message(11, _value(each, shape, dtype)) for each, shape in zip(names, shapes, strict=True))
    graph += _message(12, _value("y", result, dtype))
    model = _number(1, _IR_VERSION) + _message(7, graph) + _message(8, _number(2, _OPSET))
    return GraphBytes(name, memoryview(model), f"{name}.weights", memoryview(b""))


def _value(name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    dims = b"".join(_message(1, _number(1, size)) for size in shape)
    tensor = _number(1, ELEMENTS[dtype]) + _message(2, dims)
    return _message(1, name.encode()) + _message(2, _message(1, tensor))


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
