"""One step as two graphs that share their weights: the full step, and one that leaves its middle blocks out.

    full     … → a → [middle blocks] → b → … → prediction      and residual = b - a as a further output
    cached   … → a →   + residual    → b → … → prediction      residual is a further input, the middle is gone

The idea is FORA's (arXiv 2407.01425) and Δ-DiT's (arXiv 2406.01125): from one step to the next the middle of a
transformer adds nearly the same. Where a stream has several values (text and image of an MM-DiT), each that enters the
middle is paired with one of the same shape that leaves it. Residuals are float32 whatever the graph computes in: b is
the same number again where the residual is of the same step.

Works on the final graph, after half precision or quantisation were written: all tensors are the same objects, so that
the cached graph can name places in the full one's file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from latentc.errors import LatentcError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.step_cache.boundaries import Blocks, Boundary, blocks_of

LATENT_INPUTS = ("history", "input_row")
# What is computed in every step. The first block makes the text of an MM-DiT depend on the latents, the last ones turn
# the stream into a prediction; more at either end costs time in cached steps (docs/step-caching.md has the figures).
FRONT_BLOCKS, BACK_BLOCKS = 1, 1
LEAST_BLOCKS = FRONT_BLOCKS + 1 + BACK_BLOCKS
_REAL = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Split:
    """Both graphs; blocks `first` up to but not including `end` of `count` are left out of the cached one."""

    full: ir.Model
    cached: ir.Model
    residuals: tuple[str, ...]
    first: int
    end: int
    count: int


def split_step(model: ir.Model, lists: Sequence[str]) -> Split:
    """Splits the denoise graph, which is left alone. `lists` names the family's lists of blocks, as they run.

    Raises LatentcError where no two boundaries pass on values of the same shapes.
    """
    blocks = blocks_of(model, lists, LATENT_INPUTS)
    before, behind = _widest(blocks)
    pairs = _paired(before, behind)
    assert pairs is not None, "the widest pair of boundaries is one whose values pair up"
    names = tuple(f"residual_{number}" for number in range(len(pairs)))
    full, cached = model.clone(), model.clone()
    for name, (entering, leaving) in zip(names, pairs, strict=True):
        _add_output(full, name, entering.name or "", leaving.name or "")
        _replace_by_input(cached, name, entering.name or "", leaving.name or "")
    RemoveUnusedNodesPass()(cached)
    read = {value for node in cached.graph for value in node.inputs}
    for value in [value for value in cached.graph.inputs if value not in read]:
        cached.graph.inputs.remove(value)
    _check_left_out(cached, blocks, before.block, behind.block)
    return Split(full, cached, names, before.block, behind.block, blocks.count)


def _widest(blocks: Blocks) -> tuple[Boundary, Boundary]:
    """The two boundaries with the most blocks between them whose values pair up."""
    last = blocks.count - BACK_BLOCKS
    between = [(first, end) for first in range(FRONT_BLOCKS, last) for end in range(first + 1, last + 1)]
    for first, end in sorted(between, key=lambda pair: (pair[0] - pair[1], pair[0])):
        before, behind = blocks.boundary(first), blocks.boundary(end)
        if _paired(before, behind) is not None:
            return before, behind
    raise LatentcError(
        f"--cache: the denoiser has {blocks.count} blocks, and no two places between them with a stream of the same "
        "shapes; leave --cache away"
    )


def _paired(before: Boundary, behind: Boundary) -> list[tuple[ir.Value, ir.Value]] | None:
    """Each value of `before` with one of `behind` of its shape; None if they do not pair up."""
    if not before.stream or len(before.stream) != len(behind.stream):
        return None
    left = list(behind.stream)
    pairs = []
    for entering in before.stream:
        found = next((leaving for leaving in left if _alike(entering, leaving)), None)
        if found is None:
            return None
        left.remove(found)
        pairs.append((entering, found))
    return pairs


def _alike(entering: ir.Value, leaving: ir.Value) -> bool:
    known = entering.shape is not None and entering.shape == leaving.shape
    return known and entering.dtype in _REAL and leaving.dtype in _REAL


def _add_output(model: ir.Model, name: str, entering: str, leaving: str) -> None:
    """A float32 output `name`: what the middle has added to the value `entering`."""
    values = ir.convenience.create_value_mapping(model.graph)
    enter, leave = values[entering], values[leaving]
    last = leave.producer()
    assert last is not None, f"{leaving} is made by a node"
    nodes: list[ir.Node] = []
    parts = [_cast(value, ir.DataType.FLOAT, f"{name}/{side}", nodes) for side, value in (("b", leave), ("a", enter))]
    nodes.append(ir.node("Sub", parts, name=f"{name}/sub"))
    _named(nodes[-1].outputs[0], name, leave.shape, ir.DataType.FLOAT)
    model.graph.insert_after(last, nodes)
    model.graph.outputs.append(nodes[-1].outputs[0])


def _replace_by_input(model: ir.Model, name: str, entering: str, leaving: str) -> None:
    """The value `leaving` becomes `entering` and a new float32 input `name`."""
    values = ir.convenience.create_value_mapping(model.graph)
    enter, leave = values[entering], values[leaving]
    first = enter.producer()
    assert first is not None, f"{entering} is made by a node"
    assert leave.dtype is not None, f"{leaving} has a type"
    residual = ir.Value(name=name, shape=leave.shape, type=ir.TensorType(ir.DataType.FLOAT))
    nodes: list[ir.Node] = []
    wide = _cast(enter, ir.DataType.FLOAT, f"{name}/a", nodes)
    nodes.append(ir.node("Add", [wide, residual], name=f"{name}/add"))
    _named(nodes[-1].outputs[0], f"{name}/b", leave.shape, ir.DataType.FLOAT)
    again = _cast(nodes[-1].outputs[0], leave.dtype, f"{name}/narrow", nodes)
    model.graph.insert_after(first, nodes)
    ir.convenience.replace_all_uses_with(leave, again)
    model.graph.inputs.append(residual)


def _cast(value: ir.Value, dtype: ir.DataType, name: str, nodes: list[ir.Node]) -> ir.Value:
    """`value` as `dtype`: itself, or what a new node of `nodes` makes of it."""
    if value.dtype is dtype:
        return value
    node = ir.node("Cast", [value], {"to": dtype}, name=f"{name}/cast")
    nodes.append(node)
    _named(node.outputs[0], f"{name}/{dtype.name.lower()}", value.shape, dtype)
    return node.outputs[0]


def _named(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)


def _check_left_out(cached: ir.Model, blocks: Blocks, first: int, end: int) -> None:
    """A node of the middle that is still there is read around the stream: then less is saved than is said."""
    middle = {node.name for node, stage in blocks.stage.items() if first <= stage < end and node in blocks.streamed}
    kept = [node.name or "" for node in cached.graph if node.name in middle]
    if kept:
        raise LatentcError(
            f"--cache: {len(kept)} nodes of the middle blocks ({kept[0]}) are read behind them; leave --cache away"
        )
