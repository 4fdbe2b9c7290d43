"""The denoiser's rows shared out among the cores: each core runs some of them alone, all at once.

A step of a small model is hundreds of operators of some ten microseconds. Split over the threads of a pool one by one,
each ends in a wait for the slowest thread; with a part of the rows for each core there is one wait a step. The rows are
the guidance branches of the pictures, and no row sees another, so that the parts are exact; the prediction is a
weighted sum over branches (ADR 0005), so that it is the sum of what the parts predict. What it gives: ADR 0024.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnxruntime

from latentc.backends.protocol import Array

BRANCHES, PICTURES = "guidance_branches", "batch"
_ROWS = {f"{PICTURES}*{BRANCHES}", f"{BRANCHES}*{PICTURES}"}  # in memory branch by branch, [branches · pictures]

Dims: TypeAlias = Sequence[int | str | None]


@dataclass(frozen=True)
class Rows:
    """How many there are of each."""

    branches: int
    pictures: int


@dataclass(frozen=True)
class Part:
    """Some branches of some pictures."""

    branches: slice
    pictures: slice


def parts_of(rows: Rows, count: int) -> list[Part]:
    """`count` parts of equal size; none where there are none, or `count` is 1.

    Branches are divided first: their inputs are contiguous, and one picture has them.
    """
    across = math.gcd(rows.branches, count)
    along = count // across
    if count < 2 or rows.pictures % along:
        return []
    width, height = rows.branches // across, rows.pictures // along
    return [
        Part(slice(b * width, (b + 1) * width), slice(p * height, (p + 1) * height))
        for b in range(across)
        for p in range(along)
    ]


def rows_of(dims: Mapping[str, Dims], arrays: Mapping[str, Array]) -> Rows | None:
    """What is bound to a denoiser; None for another graph, and where a dim mixes rows with something else."""
    sizes: dict[str, int] = {}
    for name, shape in dims.items():
        for dim, size in zip(shape, arrays[name].shape, strict=False):
            if dim in (BRANCHES, PICTURES):
                sizes[str(dim)] = size
            elif isinstance(dim, str) and dim not in _ROWS and (BRANCHES in dim or PICTURES in dim):
                return None
    return Rows(sizes[BRANCHES], sizes[PICTURES]) if sizes.keys() == {BRANCHES, PICTURES} else None


def of_part(array: Array, dims: Dims, rows: Rows, part: Part) -> Array:
    """The part's share of a tensor: a view, in which branches and pictures have an axis each."""
    shape: list[int] = []
    index: list[slice] = []
    for dim, size in zip(dims, array.shape, strict=True):
        if dim in _ROWS:
            shape += [rows.branches, rows.pictures]
            index += [part.branches, part.pictures]
        else:
            shape.append(size)
            index.append(part.branches if dim == BRANCHES else part.pictures if dim == PICTURES else slice(None))
    return array.reshape(shape)[tuple(index)]


def _joined(shape: Sequence[int], dims: Dims) -> tuple[int, ...]:
    """The shape of a share as the graph has it: branches and pictures on one axis again."""
    sizes = iter(shape)
    return tuple(next(sizes) * next(sizes) if dim in _ROWS else next(sizes) for dim in dims)


class WholeRun:
    """A session on what is bound, all at once."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs = {value.name for value in session.get_inputs()}

    def bind(self, name: str, array: Array) -> None:
        _bind(self._binding, name, array, array.shape, is_input=name in self._inputs)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


class PartedRun:
    """A session of one thread, run once for each part, all at once.

    Where a part's share of a tensor is contiguous it is read and written in place; else it is copied.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, rows: Rows, parts: Sequence[Part], workers: Executor
    ) -> None:
        self._session, self._rows, self._parts, self._workers = session, rows, parts, workers
        self._bindings = [session.io_binding() for _ in parts]
        self._inputs = {value.name: value.shape for value in session.get_inputs()}
        self._outputs = {value.name: value.shape for value in session.get_outputs()}
        # (target, source) by tensor: what is copied before the parts run, and copied or added when they have run.
        self._before: dict[str, list[tuple[Array, Array]]] = {}
        self._after: dict[str, list[tuple[Array, Array]]] = {}
        self._added: dict[str, list[tuple[Array, Array]]] = {}

    def bind(self, name: str, array: Array) -> None:
        is_input = name in self._inputs
        dims = self._inputs[name] if is_input else self._outputs[name]
        has_branches = any(dim == BRANCHES or dim in _ROWS for dim in dims)
        copied: list[tuple[Array, Array]] = []
        added: list[tuple[Array, Array]] = []
        for part, binding in zip(self._parts, self._bindings, strict=True):
            share = of_part(array, dims, self._rows, part)
            adds = not (is_input or has_branches or part.branches.start == 0)
            place = share
            if adds or not share.flags.c_contiguous:
                place = np.empty_like(share, order="C")
                (added if adds else copied).append((place, share) if is_input else (share, place))
            _bind(binding, name, place, _joined(share.shape, dims), is_input)
        if is_input:
            self._before[name] = copied
        else:
            self._after[name], self._added[name] = copied, added

    def run(self) -> None:
        for copies in self._before.values():
            for target, source in copies:
                np.copyto(target, source)
        others = [self._workers.submit(self._session.run_with_iobinding, binding) for binding in self._bindings[1:]]
        try:
            self._session.run_with_iobinding(self._bindings[0])
        finally:  # the others write to memory that is this run's
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error
        for copies in self._after.values():
            for target, source in copies:
                np.copyto(target, source)
        for additions in self._added.values():
            for target, source in additions:
                np.add(target, source, out=target)


def _bind(binding: onnxruntime.IOBinding, name: str, array: Array, shape: tuple[int, ...], is_input: bool) -> None:
    bind = binding.bind_input if is_input else binding.bind_output
    bind(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)
