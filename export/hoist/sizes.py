"""Sizes of tensors as values: which nodes only compute them, and how to compute them again from other inputs.

Contract: `Shape(x)` of a traced x is a list of expressions in the symbolic dims of the graph's inputs. Where they are
known, no part of the graph needs x for it. Only sums of products of symbols and numbers are rebuilt; any other
expression is declined, and its Shape is then an ordinary node that depends on x.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

ARITHMETIC = frozenset((
    "Add", "Cast", "Concat", "Div", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "ReduceMax", "ReduceMin",
    "ReduceProd", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze",
))  # fmt: skip

Polynomial = tuple[tuple[int | str, ...], ...]  # a sum of products, such as ((2, "batch"), (7,)) for 2*batch + 7


@dataclass(frozen=True)
class Probe:
    """The shapes of all values (by name) at one binding of the symbolic dims; an unknown shape is left out."""

    dims: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


def symbols_of(value: ir.Value) -> dict[str, int]:
    """Symbol -> axis, for the symbols that are dims of `value` by themselves (2*batch is not one)."""
    found: dict[str, int] = {}
    for axis, dim in enumerate(value.shape.dims if value.shape is not None else ()):
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None and dim.value.isidentifier():
            found.setdefault(dim.value, axis)
    return found


def polynomial_of(dim: int | ir.SymbolicDim) -> Polynomial | None:
    """`dim` as a sum of products; None for an unknown dim and for any other expression."""
    if isinstance(dim, int):
        return ((dim,),)
    terms: list[tuple[int | str, ...]] = []
    for term in (dim.value or "").split("+"):
        factors = [factor.strip() for factor in term.split("*")]
        if not all(factor.isdecimal() or factor.isidentifier() for factor in factors):
            return None
        terms.append(tuple(int(factor) if factor.isdecimal() else factor for factor in factors))
    return tuple(terms)


def sizes_of_shape_node(node: ir.Node, known: Collection[str], probe: Probe) -> tuple[Polynomial, ...] | None:
    """What a Shape or Size node returns, as polynomials in the symbols `known`; None if it is no such node.

    None too if its input was traced without a shape, with an expression that is no polynomial or of other symbols, or
    with a shape that is not the one inferred at the probe.
    """
    if node.op_type not in ("Shape", "Size") or node.domain or node.inputs[0] is None:
        return None
    value = node.inputs[0]
    if node.op_type == "Shape":  # only what it asks for has to be known: x.shape[1:2] of [slots, batch, 2*height]
        return sizes_of_value(value, known, probe, slice(node.attributes.get_int("start", 0), _end(node)))
    polynomials = sizes_of_value(value, known, probe)
    if polynomials is None:
        return None
    product: Polynomial = ((1,),)
    for polynomial in polynomials:
        product = tuple(left + right for left in product for right in polynomial)
    return (product,)


def _end(node: ir.Node) -> int | None:
    return node.attributes["end"].as_int() if "end" in node.attributes else None


def sizes_of_value(
    value: ir.Value, known: Collection[str], probe: Probe, part: slice = slice(None)
) -> tuple[Polynomial, ...] | None:
    """The traced shape of `value`, or `part` of it, as polynomials where it can be trusted (`sizes_of_shape_node`)."""
    if value.const_value is not None:
        return tuple(((size,),) for size in value.const_value.shape.numpy())[part]
    seen = probe.shapes.get(value.name or "")
    if value.shape is None or seen is None or len(seen) != len(value.shape):
        return None
    polynomials = [polynomial_of(dim) for dim in value.shape.dims[part]]
    trusted = [p for p in polynomials if p is not None and symbols_in((p,)) <= set(known)]
    if len(trusted) != len(polynomials) or tuple(evaluated(p, probe.dims) for p in trusted) != seen[part]:
        return None
    return tuple(trusted)


def symbols_in(polynomials: Sequence[Polynomial]) -> frozenset[str]:
    """The symbols that the polynomials are made of."""
    return frozenset(f for polynomial in polynomials for term in polynomial for f in term if isinstance(f, str))


def evaluated(polynomial: Polynomial, dims: Mapping[str, int]) -> int:
    """The number that `polynomial` is where its symbols have the sizes `dims`."""
    total = 0
    for term in polynomial:
        product = 1
        for factor in term:
            product *= factor if isinstance(factor, int) else dims[factor]
        total += product
    return total


def is_size_arithmetic(node: ir.Node, sizes: Collection[ir.Value]) -> bool:
    """Whether `node` only computes with sizes: cheap, and safe to do again in another part of the graph."""
    read = [value for value in node.inputs if value is not None and value.const_value is None]
    integer = all(value.dtype is None or value.dtype.is_integer() for value in node.outputs)
    return bool(read) and node.op_type in ARITHMETIC and integer and all(value in sizes for value in read)
