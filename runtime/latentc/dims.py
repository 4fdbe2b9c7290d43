"""Symbolic dimensions of the manifest: names that inputs bind, and products of them that outputs have."""

from collections.abc import Iterable, Mapping
from math import prod

from latentc.errors import BundleError
from latentc.schema import Dim, TensorSpec


def bound_dims(specs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of all named dims, read off the given inputs; BundleError if two inputs disagree."""
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = shapes[spec.name]
        if len(shape) != len(spec.shape):
            raise BundleError(f"input {spec.name} has {len(shape)} dims, the manifest says {len(spec.shape)}")
        for dim, size in zip(spec.shape, shape, strict=True):
            if isinstance(dim, str) and dim.isidentifier() and sizes.setdefault(dim, size) != size:
                raise BundleError(f"input {spec.name}: {dim} is {size} here and {sizes[dim]} in another input")
    return sizes


def evaluated(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The size of `dim`: a number, a name, or a product of both such as "2*batch*guidance_branches"."""
    if isinstance(dim, int):
        return dim
    factors = [factor.strip() for factor in dim.split("*")]
    unknown = [factor for factor in factors if not factor.isdecimal() and factor not in sizes]
    if unknown:
        raise BundleError(f"the size of dim {dim!r} is not known: nothing binds {', '.join(unknown)}")
    return prod(int(factor) if factor.isdecimal() else sizes[factor] for factor in factors)
