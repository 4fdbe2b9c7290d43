"""Makes nodes with stable names for the graphs that a partition is made of.

Contract: an initializer holds the very tensor that it was copied from, which is never read.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.hoist.sizes import Polynomial


class GraphBuilder:
    """Collects nodes, in order. Names of its own begin with `prefix`; those of copied nodes and values are kept."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._count = 0
        self._sizes: dict[Polynomial, ir.Value] = {}

    def copy(self, node: ir.Node, copies: dict[ir.Value, ir.Value]) -> None:
        """Appends a copy of `node`, with its inputs looked up in `copies` and its results added there."""
        inputs = [value and self._read(value, copies) for value in node.inputs]
        results = [
            ir.Value(name=value.name, shape=value.shape and value.shape.copy(), type=value.type)
            for value in node.outputs
        ]
        copies |= dict(zip(node.outputs, results, strict=True))
        self.nodes.append(
            ir.Node(
                node.domain, node.op_type, inputs, list(node.attributes.values()),
                overload=node.overload, outputs=results, version=node.version, name=node.name,
                metadata_props=dict(node.metadata_props),  # the module that it was traced from: islands look for it
            )
        )  # fmt: skip

    def op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        """Appends a node with one result."""
        node = ir.node(op_type, list(inputs), dict(attributes), name=self._name(op_type))
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def split(self, value: ir.Value, widths: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Appends a Split into parts of these widths."""
        node = ir.node(
            "Split", [value, self.constant(widths)], {"axis": axis}, num_outputs=len(widths), name=self._name("Split")
        )
        for index, result in enumerate(node.outputs):
            result.name = f"{node.name}_{index}"
        self.nodes.append(node)
        return node.outputs

    def constant(self, numbers: Sequence[int]) -> ir.Value:
        """An int64 vector."""
        name = self._prefix + "_".join(map(str, numbers))
        if len(name) > 40:
            name = self._name("constant")
        if name not in self.initializers:
            self.initializers[name] = _initializer(name, ir.tensor(np.array(numbers, np.int64), name=name))
        return self.initializers[name]

    def sizes(self, polynomials: Sequence[Polynomial], sources: Mapping[ir.Value, Mapping[str, int]]) -> ir.Value:
        """An int64 vector of these sizes; `sources` gives the axes of some values that have a symbol as their size."""
        for polynomial in polynomials:
            if polynomial not in self._sizes:
                self._sizes[polynomial] = self._size(polynomial, sources)
        items = [self._sizes[polynomial] for polynomial in polynomials]
        return items[0] if len(items) == 1 else self.op("Concat", items, axis=0)

    def _size(self, polynomial: Polynomial, sources: Mapping[ir.Value, Mapping[str, int]]) -> ir.Value:
        terms = []
        for term in polynomial:
            factors = []
            for factor in term:
                if isinstance(factor, int):
                    factors.append(self.constant([factor]))
                else:
                    value, axes = next((value, axes) for value, axes in sources.items() if factor in axes)
                    factors.append(self.op("Shape", [value], start=axes[factor], end=axes[factor] + 1))
            product = factors[0]
            for factor_value in factors[1:]:
                product = self.op("Mul", [product, factor_value])
            terms.append(product)
        total = terms[0]
        for term_value in terms[1:]:
            total = self.op("Add", [total, term_value])
        return total

    def model(self, name: str, origin: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
        """A model of the collected nodes, with the opsets and the version of `origin`."""
        graph = ir.Graph(
            inputs, outputs, nodes=self.nodes, initializers=list(self.initializers.values()),
            opset_imports=dict(origin.opset_imports), name=name,
        )  # fmt: skip
        return ir.Model(graph, ir_version=origin.ir_version)

    def _read(self, value: ir.Value, copies: dict[ir.Value, ir.Value]) -> ir.Value:
        if value in copies or value.const_value is None:
            return copies[value]
        name = value.name or ""
        if name not in self.initializers:
            self.initializers[name] = _initializer(name, value.const_value)
        copies[value] = self.initializers[name]
        return copies[value]

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}{what}_{self._count}"


def _initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
