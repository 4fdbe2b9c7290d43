"""TensorRT's errors in one line, with the node of our graph that they speak of."""

import re
from collections.abc import Iterable
from typing import Any

from latentc.backends.tensorrt.onnx_file import Node, OnnxFile

_MOST = 600  # characters


def parser_complaint(parser: Any, graph: str, onnx: OnnxFile) -> str:
    """The first error of an ONNX parser. 8.6 gives the node's number only, later versions its name as well."""
    error = parser.get_error(0)
    number = int(error.node())
    node = onnx.nodes[number] if 0 <= number < len(onnx.nodes) else None
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    where = f"node {node.name} ({node.op_type}) of " if node is not None else ""
    return _short(f"TensorRT cannot read {where}graph {graph}: {error.desc()}{more}")


def builder_complaint(complaints: Iterable[str], graph: str, onnx: OnnxFile) -> str:
    """What the log says of a build that failed: its last error that names a node, else its last."""
    lines = list(complaints)
    for line in reversed(lines):
        nodes = _named(line, onnx.nodes)
        if nodes:
            first = nodes[0]
            more = f" to {nodes[-1].name}" if len(nodes) > 1 else ""
            return _short(f"TensorRT cannot build graph {graph} at node {first.name} ({first.op_type}){more}: {line}")
    reason = lines[-1] if lines else "it gives no reason"
    return _short(f"TensorRT cannot build graph {graph}: {reason}")


def _named(line: str, nodes: list[Node]) -> list[Node]:
    """The nodes whose names stand in a line, in the line's order. TensorRT joins several with '...' and '+'."""
    words = re.split(r"[\s\[\]{}()+,;'\"]+|\.\.\.", line)
    places = {word: position for position, word in reversed(list(enumerate(words)))}
    found = [node for node in nodes if node.name and node.name in places]
    return sorted(found, key=lambda node: places[node.name])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST else f"{text[:_MOST]} …"
