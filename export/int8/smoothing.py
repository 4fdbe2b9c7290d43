"""Channels of an activation made alike before it is quantised: x / c and c · weight instead of x and weight.

One scale holds all of an activation, so that a few large channels leave few codes for the others. SmoothQuant (arXiv
2211.10438, equation 4) moves a part of that into the weight: c = max|x|^α / max|w|^(1 − α) for each input channel, with
α = 1/2. It is done only where the division costs nothing: where x comes from a
normalisation, its scale and shift (constants, or one row of the schedule for each picture) are divided instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.int8.layers import Layer, layers_of
from export.runner import Runner

ALPHA = 0.5
MOST = (
    32.0  # a factor is this far from the others' geometric mean at most: another request may have other large channels
)
_NORMALISATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_PREFIX = "channels_of::"

Factors = Mapping[str, np.ndarray]  # activation -> c, float32 [K]


@dataclass(frozen=True)
class _Place:
    """An input of a node that can be divided instead of the activation."""

    node: ir.Node
    slot: int


def groups_of(layers: Sequence[Layer]) -> dict[ir.Value, list[Layer]]:
    """The layers by the activation that they read."""
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.activation, []).append(layer)
    return groups


def smoothing(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> Factors:
    """The factors of every activation whose division costs nothing, from one run of `samples`."""
    watched = model.clone()
    graph, added = watched.graph, []
    weights: dict[str, np.ndarray] = {}
    groups = {x: group for x, group in groups_of(layers_of(watched)).items() if _places(x, group) is not None}
    for x in groups:
        assert x.shape is not None, "an activation that can be divided has a shape"
        axes = np.arange(len(x.shape) - 1)
        given = ir.Value(
            name=f"{_PREFIX}axes::{x.name}",
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape(axes.shape),
            const_value=ir.tensor(axes),
        )
        graph.register_initializer(given)
        magnitude = ir.node("Abs", [x])
        peak = ir.node("ReduceMax", [magnitude.outputs[0], given], {"keepdims": 0})
        magnitude.outputs[0].name, peak.outputs[0].name = f"magnitude_of::{x.name}", f"{_PREFIX}{x.name}"
        peak.outputs[0].dtype, peak.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([x.shape[-1]])
        producer = x.producer()
        assert producer is not None, "an activation that can be divided is computed"
        producer.append([magnitude, peak])
        added.append(peak.outputs[0])
    graph.outputs.extend(added)
    by_weight = {layer.weight.name or "": layer for group in groups.values() for layer in group}

    def look(name: str, array: np.ndarray) -> None:
        layer = by_weight.get(name)
        if layer is not None and layer.weight.const_value is not None:
            matrix = np.abs(array.reshape(layer.weight.const_value.shape.numpy()))
            weights[name] = matrix.max(axis=0 if layer.transposed else 1)

    with Runner(watched, on_weight=look) as runner:
        outputs = runner.run_all(samples)
    found = {}
    for x, group in groups.items():
        channels = np.max([values[f"{_PREFIX}{x.name}"] for values in outputs], axis=0)
        rows = np.max([weights[layer.weight.name or ""] for layer in group], axis=0)
        found[x.name or ""] = _factors(channels, rows)
    return found


def _factors(channels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """max|x| and max|w| by input channel -> c, float32 [K], of geometric mean 1; a dead channel has 1."""
    alive = np.isfinite(channels) & np.isfinite(rows) & (channels > 0) & (rows > 0)
    logarithms = np.zeros(len(channels))
    logarithms[alive] = ALPHA * np.log(channels[alive]) - (1 - ALPHA) * np.log(rows[alive])
    logarithms[alive] -= logarithms[alive].mean() if alive.any() else 0.0
    return np.exp(np.clip(logarithms, -np.log(MOST), np.log(MOST))).astype(np.float32)


def divide(graph: ir.Graph, x: ir.Value, group: Sequence[Layer], factors: np.ndarray) -> bool:
    """Makes `x` into x / factors, in place, if only `group` reads it and it costs nothing; else returns False."""
    places = _places(x, group)
    if places is None:
        return False
    inverse = _constant(graph, f"{x.name}_inverse", (1 / factors).astype(np.float32))
    for index, place in enumerate(places):
        value = place.node.inputs[place.slot]
        assert value is not None, "a place holds a value"
        if value.const_value is not None:
            array = value.const_value.numpy() * inverse.const_value.numpy()  # type: ignore[union-attr]
            place.node.replace_input_with(place.slot, _constant(graph, f"{x.name}_divided_{index}", array))
            continue
        product = ir.node("Mul", [value, inverse], name=f"divide_{x.name}_{index}")
        product.outputs[0].name = f"{x.name}_divided_{index}"
        product.outputs[0].dtype, product.outputs[0].shape = ir.DataType.FLOAT, value.shape
        place.node.prepend(product)
        place.node.replace_input_with(place.slot, product.outputs[0])
    if not inverse.uses():
        del graph.initializers[inverse.name or ""]
    return True


def _places(x: ir.Value, group: Sequence[Layer]) -> list[_Place] | None:
    """What to divide so that `x` is divided by a vector of its channels; None where that is not free."""
    if x.shape is None or not isinstance(x.shape[-1], int) or x.is_graph_output():
        return None
    nodes = {layer.node for layer in group}
    if any(user not in nodes for user in x.consumers()):
        return None
    return _places_of(x, x.shape[-1])


def _places_of(value: ir.Value, width: int) -> list[_Place] | None:
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type in _NORMALISATIONS:
        slots = [slot for slot in (1, 2) if slot < len(node.inputs) and node.inputs[slot] is not None]
        is_plain = all(_is_row(node.inputs[slot], width) for slot in slots)
        return [_Place(node, slot) for slot in slots] if is_plain and slots else None
    if node.op_type == "Mul":
        for slot in (0, 1):
            if _is_row(node.inputs[slot], width):
                return [_Place(node, slot)]
        return None
    if node.op_type == "Add":
        found: list[_Place] = []
        for slot in (0, 1):
            term = node.inputs[slot]
            if _is_row(term, width):
                found.append(_Place(node, slot))
                continue
            inner = _places_of(term, width) if term is not None and len(term.uses()) == 1 else None
            if inner is None:
                return None
            found += inner
        return found
    return None


def _is_row(value: ir.Value | None, width: int) -> bool:
    """Whether `value` is one number for each channel, and none for each token."""
    if value is None or value.shape is None or value.dtype is not ir.DataType.FLOAT:
        return False
    dims = list(value.shape)
    if not dims or dims[-1] != width:
        return False
    return len(dims) == 1 or dims[-2] == 1


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value
