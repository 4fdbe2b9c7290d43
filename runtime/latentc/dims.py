"""Symbolic dimensions of the manifest: names that inputs bind, and sums of products of them
that outputs have."""

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
            name, factor = _single(dim)
            if name is None:
                continue
            if size % factor:
                raise BundleError(f"input {spec.name}: {dim} cannot be {size}")
            if sizes.setdefault(name, size // factor) != size // factor:
                raise BundleError(f"input {spec.name}: {name} is {size // factor} here and {sizes[name]} elsewhere")
    return sizes


def _single(dim: Dim) -> tuple[str | None, int]:
    """The one name in `dim` and what it is multiplied by ("8*grid_height"); no name if there is none, or several."""
    if isinstance(dim, int):
        return None, 1
    factors = [factor.strip() for factor in dim.split("*")]
    names = [factor for factor in factors if factor.isidentifier()]
    numbers = [int(factor) for factor in factors if factor.isdecimal()]
    if len(names) != 1 or len(names) + len(numbers) != len(factors) or 0 in numbers:
        return None, 1
    return names[0], prod(numbers)


def evaluated(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The size of `dim`: a number, a name, or a sum of products of both such as "4*grid_height*grid_width + 77"."""
    if isinstance(dim, int):
        return dim
    terms = [[factor.strip() for factor in term.split("*")] for term in dim.split("+")]
    unknown = [factor for term in terms for factor in term if not factor.isdecimal() and factor not in sizes]
    if unknown:
        raise BundleError(f"the size of dim {dim!r} is not known: nothing binds {', '.join(unknown)}")
    return sum(prod(int(factor) if factor.isdecimal() else sizes[factor] for factor in term) for term in terms)
