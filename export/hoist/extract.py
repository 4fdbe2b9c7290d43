"""Copies the part of a graph that computes some values from others into a model of its own.

Contract: weights are shared with the original (the same tensor objects) and never read. Constants and size arithmetic
are copied into every part that needs them; `Shape(x)` of an x that the part does not have is computed from the part's
own inputs. Names are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.hoist.build import GraphBuilder
from export.hoist.classes import Classes
from export.hoist.sizes import Polynomial, Probe, sizes_of_shape_node, symbols_in, symbols_of


@dataclass(frozen=True)
class Extractor:
    """Makes parts of one graph."""

    model: ir.Model
    classes: Classes
    base: Probe

    def part(
        self, name: str, given: Mapping[ir.Value, str], outputs: Mapping[ir.Value, str], sources: Sequence[ir.Value]
    ) -> ir.Model:
        """The model that computes `outputs`, with the names that they have there.

        Its inputs are the inputs of the whole graph that it reads, in their order, and then the `given` values, by
        their names there. `sources` are the inputs of the whole graph that may be asked for a size, the best first; one
        that is read for nothing else becomes an input only if no other has that size.
        """
        wanted = self._behind(outputs, given)
        rebuilt = self._rebuilt(wanted, given)
        inputs = self._inputs(wanted, rebuilt, outputs, sources)
        copies: dict[ir.Value, ir.Value] = {}
        for value in (*inputs, *given):
            copies[value] = ir.Value(
                name=given.get(value, value.name), shape=value.shape and value.shape.copy(), type=value.type
            )
        graph_inputs = list(copies.values())
        size_sources = [value for value in sources if value in copies]
        builder = GraphBuilder("hoist/")
        for node in wanted:
            if node in rebuilt:
                sizes = builder.sizes(rebuilt[node], {copies[v]: symbols_of(v) for v in size_sources})
                copies[node.outputs[0]] = builder.op("Squeeze", [sizes]) if node.op_type == "Size" else sizes
            else:
                builder.copy(node, copies)
        results = []
        for value, output_name in outputs.items():
            copies[value].name = output_name
            results.append(copies[value])
        return builder.model(name, self.model, graph_inputs, results)

    def _behind(self, outputs: Mapping[ir.Value, str], given: Mapping[ir.Value, str]) -> list[ir.Node]:
        """The nodes behind `outputs` up to `given`, in the graph's order; not those that only give a size."""
        found: set[ir.Node] = set()
        pending = list(outputs)
        while pending:
            value = pending.pop()
            node = value.producer()
            if value in given or node is None or node in found:
                continue
            found.add(node)
            if not self._gives_size(node):
                pending.extend(read for read in node.inputs if read is not None)
        return [node for node in self.model.graph if node in found]

    def _gives_size(self, node: ir.Node) -> bool:
        return node.op_type in ("Shape", "Size") and node.outputs[0] in self.classes.sizes

    def _rebuilt(
        self, wanted: Sequence[ir.Node], given: Mapping[ir.Value, str]
    ) -> dict[ir.Node, tuple[Polynomial, ...]]:
        """The Shape and Size nodes whose operand this part does not have."""
        there = {value for node in wanted for value in node.outputs} | set(given)
        there |= {value for node in wanted if not self._gives_size(node) for value in node.inputs if value is not None}
        rebuilt = {}
        for node in wanted:
            if self._gives_size(node) and node.inputs[0] not in there:
                polynomials = sizes_of_shape_node(node, self.base.dims, self.base)
                assert polynomials is not None, "only such nodes are classed as sizes"
                rebuilt[node] = polynomials
        return rebuilt

    def _inputs(
        self,
        wanted: Sequence[ir.Node],
        rebuilt: Mapping[ir.Node, tuple[Polynomial, ...]],
        outputs: Mapping[ir.Value, str],
        sources: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """The inputs of the whole graph that the part has, in their order."""
        used = {value for node in wanted if node not in rebuilt for value in node.inputs if value is not None}
        used |= set(outputs)
        for symbol in sorted(symbols_in([p for polynomials in rebuilt.values() for p in polynomials])):
            having = [value for value in sources if symbol in symbols_of(value)]
            assert having, f"class says that a part has the size {symbol}"
            if not any(value in used for value in having):
                used.add(having[0])
        return [value for value in self.model.graph.inputs if value in used]
