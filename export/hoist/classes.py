"""Classes every value of a graph by the inputs that it depends on.

    constant  ⊂  prompt  ⊂  schedule  ⊂  loop

Contract: it reads a graph and the classes of its inputs; it decides nothing about what moves. A value that holds only
*sizes* (`Shape(x)`, and integer arithmetic on it) does not depend on what is in x: its class is the lowest one whose
inputs have the symbolic dims that it is made of, because any part of the graph that has those dims can recompute it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

import onnx_ir as ir

from export.hoist.errors import NotALoopError, UnknownInputError, UnsupportedNodeError, UnusedInputError
from export.hoist.sizes import Probe, is_size_arithmetic, sizes_of_shape_node, symbols_in, symbols_of

RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class ValueClass(IntEnum):
    """When a value can change; the order is the order of inclusion."""

    CONSTANT = 0
    PROMPT = 1
    SCHEDULE = 2
    LOOP = 3


class InputClass(Enum):
    """When an input changes: once a request, with the step in the same way for every request, or with the latents."""

    PROMPT = "prompt"
    SCHEDULE = "schedule"
    LOOP = "loop"

    @property
    def value_class(self) -> ValueClass:
        return ValueClass[self.name]


@dataclass(frozen=True)
class Classes:
    """The classes of one graph."""

    of: Mapping[ir.Value, ValueClass]  # every value that is no initializer
    sizes: Mapping[ir.Value, frozenset[str]]  # values that hold only sizes, and the symbols that they are made of
    timestep_only: frozenset[ir.Value]  # computable from the schedule inputs alone
    inputs: Mapping[str, InputClass]

    def __getitem__(self, value: ir.Value) -> ValueClass:
        return self.of.get(value, ValueClass.CONSTANT)

    def of_node(self, node: ir.Node) -> ValueClass:
        """The class of a node is that of its results."""
        return self[node.outputs[0]]


def classify(model: ir.Model, inputs: Mapping[str, InputClass], probe: Probe) -> Classes:
    """Classes of all values of `model`, whose inputs have the classes `inputs`.

    Traced shapes are trusted for sizes only where they agree with `probe`.

    Raises:
        UnknownInputError, UnusedInputError, NotALoopError, UnsupportedNodeError: see export.hoist.errors.
    """
    _check(model, inputs)
    providers: dict[str, set[InputClass]] = {}
    for value in model.graph.inputs:
        for symbol in symbols_of(value):
            providers.setdefault(symbol, set()).add(inputs[value.name or ""])
    of = {value: inputs[value.name or ""].value_class for value in model.graph.inputs}
    sizes: dict[ir.Value, frozenset[str]] = {}
    timestep_only = {value for value in of if of[value] is ValueClass.SCHEDULE}
    for node in model.graph:
        read = [value for value in node.inputs if value is not None and value.const_value is None]
        symbols = _symbols(node, providers, sizes, probe)
        if symbols is None:
            node_class = max((of[value] for value in read), default=ValueClass.CONSTANT)
            steps_only = node_class is ValueClass.SCHEDULE and all(
                value in timestep_only or of[value] is ValueClass.CONSTANT for value in read
            )
        else:
            sizes |= dict.fromkeys(node.outputs, symbols)
            lowest = (min(c.value_class for c in providers[symbol]) for symbol in symbols)
            node_class = max(lowest, default=ValueClass.CONSTANT)
            steps_only = all(InputClass.SCHEDULE in providers[symbol] for symbol in symbols)
        of |= dict.fromkeys(node.outputs, node_class)
        if steps_only:
            timestep_only |= set(node.outputs)
    for value in model.graph.outputs:
        if of.get(value) is not ValueClass.LOOP:
            found = of.get(value, ValueClass.CONSTANT).name.lower()
            raise NotALoopError(f"output {value.name!r} does not depend on the latents (its class is {found})")
    return Classes(of, sizes, frozenset(timestep_only), inputs)


def _symbols(
    node: ir.Node,
    providers: Mapping[str, set[InputClass]],
    sizes: Mapping[ir.Value, frozenset[str]],
    probe: Probe,
) -> frozenset[str] | None:
    """The symbols that the results of `node` are made of, if they are nothing but sizes."""
    polynomials = sizes_of_shape_node(node, providers, probe)
    if polynomials is not None:
        return symbols_in(polynomials)
    if is_size_arithmetic(node, sizes):
        return frozenset[str]().union(*(sizes.get(value, frozenset()) for value in node.inputs if value is not None))
    return None


def _check(model: ir.Model, inputs: Mapping[str, InputClass]) -> None:
    names = [value.name or "" for value in model.graph.inputs]
    if unknown := sorted(set(inputs) - set(names)):
        raise UnknownInputError(f"no input is called {', '.join(unknown)}; the graph has {', '.join(names)}")
    if missing := [name for name in names if name not in inputs]:
        raise UnknownInputError(f"input {', '.join(missing)} has no class; give prompt, schedule or loop")
    for value in model.graph.inputs:
        if not value.uses() and not value.is_graph_output():
            raise UnusedInputError(f"input {value.name!r} is never used; leave it out of the trace")
    if model.functions:
        raise UnsupportedNodeError(f"graph {model.graph.name!r} calls functions; inline them first")
    for node in model.graph:
        if any(attribute.type in SUBGRAPHS for attribute in node.attributes.values()):
            raise UnsupportedNodeError(f"node {node.name!r} ({node.op_type}) has a subgraph; trace it without branches")
        if node.op_type in RANDOM:
            raise UnsupportedNodeError(f"node {node.name!r} ({node.op_type}) is random; a step must be a function")
        if node.op_type == "Dropout" and len(node.inputs) > 2:
            raise UnsupportedNodeError(f"node {node.name!r} (Dropout) may be training; trace the module in eval()")
