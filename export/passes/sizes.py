"""Shape arithmetic that ends in constants: chains of Shape, Slice, Gather, Concat, Squeeze, Unsqueeze, Cast, Reshape.

A value that holds sizes is followed as a list of elements: a number, the name of a symbolic dim, or unknown. A list of
numbers becomes a constant. Reshape and Expand are then asked what they need at all:

    Reshape   a dim that its input has at the same place is 0, one further unknown dim is -1
    Expand    a dim that its input has already is 1

so that most graphs keep no Shape node. Two dims of one name have one size: that is what the name means in ONNX.
"""

import numpy as np
import onnx_ir as ir

Element = int | str | None  # a size, the name of a symbolic dim, or unknown
_MAX_RANK = 16


class FoldSizes(ir.passes.InPlacePass):
    """Folds computed sizes; `declined` holds (node, reason) for each Reshape and Expand that keeps a computed size."""

    def __init__(self) -> None:
        super().__init__()
        self.declined: list[tuple[str, str]] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.declined = []
        known: dict[ir.Value, list[Element]] = {}
        modified = False
        for node in list(model.graph):
            if node.domain != "":
                continue
            elements = _elements(node, known)
            if elements is not None:
                known[node.outputs[0]] = elements
                modified |= _fold(model.graph, node, elements)
            elif node.op_type == "Reshape":
                modified |= self._reshape(model.graph, node, known)
            elif node.op_type == "Expand":
                modified |= self._expand(model.graph, node, known)
        return ir.passes.PassResult(model, modified)

    def _reshape(self, graph: ir.Graph, node: ir.Node, known: dict[ir.Value, list[Element]]) -> bool:
        data, size, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert data is not None
        assert size is not None
        wanted = known.get(size) or _constant(size)
        zero_is_zero = node.attributes.get_int("allowzero", 0) == 1
        source = _dims(data)
        if wanted is None:
            wanted = _dims(output)
        elif not zero_is_zero:
            copied = [None] * len(wanted) if source is None else source  # 0 stands for the input's dim
            wanted = [copied[i] if dim == 0 and i < len(copied) else dim for i, dim in enumerate(wanted)]
        if wanted is None:
            return self._decline(node, "the size and the rank of the result are unknown")
        wanted = _with_inferred(wanted, _dims(output))
        modified = _set_shape(output, wanted)
        if wanted == source and None not in wanted and not output.is_graph_output():
            output.replace_all_uses_with(data)
            graph.remove(node, safe=True)
            return True
        if size.const_value is not None:
            return modified
        if 0 in wanted:
            return self._decline(node, "a dim is 0") or modified
        template = [
            0 if isinstance(dim, str) and source is not None and i < len(source) and source[i] == dim else dim
            for i, dim in enumerate(wanted)
        ]
        if sum(not isinstance(dim, int) for dim in template) > 1:
            return self._decline(node, f"several dims of {wanted} are neither known nor the input's") or modified
        numbers = [dim if isinstance(dim, int) else -1 for dim in template]
        node.replace_input_with(1, _initializer(graph, node, numbers))
        node.attributes.pop("allowzero", None)
        return True

    def _expand(self, graph: ir.Graph, node: ir.Node, known: dict[ir.Value, list[Element]]) -> bool:
        data, size, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert data is not None
        assert size is not None
        source, wanted = _dims(data), known.get(size) or _constant(size)
        if source is None or wanted is None:
            return self._decline(node, "the size, or the input's rank, is unknown")
        aligned: list[Element] = [*(1 for _ in range(len(wanted) - len(source))), *source]
        if len(aligned) == len(wanted) and not output.is_graph_output():
            same = len(source) == len(wanted) and all(w == 1 or w == s for w, s in zip(wanted, source, strict=True))
            if same and None not in source:
                output.replace_all_uses_with(data)
                graph.remove(node, safe=True)
                return True
        if size.const_value is not None or len(aligned) != len(wanted):
            return False
        template = [1 if isinstance(w, str) and w == s else w for w, s in zip(wanted, aligned, strict=True)]
        if not all(isinstance(dim, int) for dim in template):
            return self._decline(node, f"a dim of {wanted} is neither known nor the input's")
        node.replace_input_with(1, _initializer(graph, node, [dim for dim in template if isinstance(dim, int)]))
        return True

    def _decline(self, node: ir.Node, why: str) -> bool:
        self.declined.append((node.name or "", why))
        return False


def _elements(node: ir.Node, known: dict[ir.Value, list[Element]]) -> list[Element] | None:
    """The elements of the node's one result, if it is an integer list (or scalar) whose making is understood."""
    arguments = [known.get(value) or _constant(value) if value is not None else None for value in node.inputs]
    first = arguments[0] if arguments else None
    match node.op_type:
        case "Shape":
            dims = _dims(node.inputs[0])
            if dims is None:
                return None
            return dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
        case "Squeeze" | "Unsqueeze" | "Identity" if first is not None and _rank(node.outputs[0]) in (0, 1):
            return first
        case "Reshape" if first is not None and _is_integer(node.inputs[0]) and _rank(node.outputs[0]) in (0, 1):
            return first
        case "Cast" if first is not None and node.attributes["to"].as_int() in (ir.DataType.INT64, ir.DataType.INT32):
            return first
        case "Concat" if arguments and all(argument is not None for argument in arguments):
            return [element for argument in arguments if argument is not None for element in argument]
        case "Gather" if first is not None and _rank(node.inputs[0]) == 1 and arguments[1] is not None:
            if all(isinstance(index, int) and -len(first) <= index < len(first) for index in arguments[1]):
                return [first[index] for index in arguments[1] if isinstance(index, int)]
        case "Slice" if first is not None and _rank(node.inputs[0]) == 1:
            start, end = (a[0] if a is not None and len(a) == 1 else None for a in arguments[1:3])
            step = arguments[4] if len(arguments) > 4 else [1]
            if isinstance(start, int) and isinstance(end, int) and step == [1]:
                return first[start:end]
    return None


def _fold(graph: ir.Graph, node: ir.Node, elements: list[Element]) -> bool:
    output = node.outputs[0]
    numbers = [element for element in elements if isinstance(element, int)]
    if len(numbers) < len(elements) or output.is_graph_output() or output.dtype is not ir.DataType.INT64:
        return False
    if not output.uses() or _rank(output) not in (0, 1):
        return False
    output.replace_all_uses_with(_initializer(graph, node, numbers[0] if _rank(output) == 0 else numbers))
    return True


def _initializer(graph: ir.Graph, node: ir.Node, numbers: list[int] | int) -> ir.Value:
    name = f"{node.outputs[0].name}_size"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.array(numbers, np.int64), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _dims(value: ir.Value | None) -> list[Element] | None:
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _constant(value: ir.Value) -> list[Element] | None:
    tensor = value.const_value
    if tensor is None or not _is_integer(value) or tensor.size > _MAX_RANK or len(tensor.shape) > 1:
        return None
    return [int(number) for number in tensor.numpy().reshape(-1)]


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def _rank(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def _with_inferred(wanted: list[Element], traced: list[Element] | None) -> list[Element]:
    """-1 in a size is unknown here; what the trace knows of the result fills it."""
    if traced is not None and len(traced) == len(wanted):
        return [t if w is None or w == -1 else w for w, t in zip(wanted, traced, strict=True)]
    return [None if dim == -1 else dim for dim in wanted]


def _set_shape(value: ir.Value, dims: list[Element]) -> bool:
    """Gives `value` the dims that were found where it had none; whether that changed anything."""
    if value.shape is not None and len(value.shape) == len(dims):
        before = _dims(value)
        assert before is not None
        merged = [new if old is None else old for old, new in zip(before, dims, strict=True)]
    else:
        before, merged = None, dims
    if merged == before or value.is_graph_output():
        return False
    value.shape = ir.Shape(merged)
    return True
