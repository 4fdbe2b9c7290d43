"""Transpose and Cast of a weight become the weight: lazily, in place of the old one, under its name.

torch.onnx.export writes a Linear on three dims as MatMul(x, Transpose(weight)), and a bfloat16 checkpoint as
Cast(weight). The result replaces the weight and keeps its name, so that a report can name it and a LoRA or a hash can
find it; its bytes are computed when they are read, one tensor at a time.
"""

import onnx_ir as ir


class FoldWeightViews(ir.passes.InPlacePass):
    """Folds Transpose and floating-point Cast of an initializer whose readers all ask for the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.declined: list[tuple[str, str]] = []  # (node, why)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.declined = []
        modified = False
        for weight in list(model.graph.initializers.values()):
            while (view := self._view(weight)) is not None:
                _fold(weight, view)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _view(self, weight: ir.Value) -> ir.Node | None:
        """The Transpose or Cast that every reader of `weight` is, or None."""
        readers = list(weight.consumers())
        views = [reader for reader in readers if _is_view(reader)]
        if not views:
            return None
        if weight.is_graph_output() or weight.is_graph_input():
            self._decline(views[0], f"{weight.name} is an input or output of the graph")
        elif len(views) < len(readers):
            self._decline(views[0], f"{weight.name} is also read as it is: folding would duplicate it")
        elif any(_key(view) != _key(views[0]) for view in views):
            self._decline(views[0], f"{weight.name} is read in several layouts: folding would duplicate it")
        elif any(view.outputs[0].is_graph_output() for view in views):
            self._decline(views[0], f"{views[0].outputs[0].name} is an output of the graph")
        else:
            return views[0]
        return None

    def _decline(self, node: ir.Node, why: str) -> None:
        self.declined.append((node.name or "", why))


def _is_view(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type == "Transpose":
        return True
    source = node.inputs[0] if node.inputs else None
    return (
        node.op_type == "Cast"
        and source is not None
        and source.dtype is not None
        and source.dtype.is_floating_point()
        and ir.DataType(node.attributes["to"].as_int()).is_floating_point()
    )


def _key(node: ir.Node) -> tuple[str, tuple[int, ...]]:
    if node.op_type == "Cast":
        return "Cast", (node.attributes["to"].as_int(),)
    return "Transpose", _permutation(node)


def _permutation(node: ir.Node) -> tuple[int, ...]:
    source = node.inputs[0]
    assert source is not None
    assert source.const_value is not None
    given = node.attributes.get("perm")
    return tuple(given.as_ints()) if given is not None else tuple(reversed(range(len(source.const_value.shape))))


def _fold(weight: ir.Value, view: ir.Node) -> None:
    """`weight` becomes what `view` makes of it, and takes the place of every such view's result."""
    tensor, name = weight.const_value, weight.name
    assert tensor is not None
    dims = list(tensor.shape.numpy())
    if view.op_type == "Transpose":
        permutation = _permutation(view)
        dims, dtype = [dims[axis] for axis in permutation], tensor.dtype

        def load() -> ir.TensorProtocol:
            # A view: whoever reads it makes it contiguous, once and in its own dtype.
            return ir.Tensor(tensor.numpy().transpose(permutation), dtype=dtype, name=name)
    else:
        dtype = ir.DataType(view.attributes["to"].as_int())

        def load() -> ir.TensorProtocol:
            return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)

    graph = view.graph
    assert graph is not None
    views = list(weight.consumers())
    weight.const_value = ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(dims), name=name)
    weight.shape, weight.type = ir.Shape(dims), ir.TensorType(dtype)
    for node in views:
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)
