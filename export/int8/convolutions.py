"""Convolutions in 8 bits: QLinearConv with a scale for each output channel's weights and fixed scales around it.

    x ── QuantizeLinear ── QLinearConv ── DequantizeLinear ── y        x, y float32 as before; weights int8, bias int32

Activations are uint8 over the spans that calibration found (spans.py), weights int8 and symmetric, sums int32, exact.
ONNX Runtime runs the operator channels-last, 3.3 to 3.6 times as fast as its float32 convolution on a VAE's sizes;
ConvInteger, which needs no calibrated span of the output, is ten times *slower* than float32 there (ADR 0022).

How a layer takes it is measured: beside each float32 convolution the 8-bit one runs on the same input, and
‖ŷ - y‖ / ‖y‖ is its own error. Knows no family, and nothing of how good is good enough: `kept` is the caller's.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.int8.spans import Span
from export.int8.watching import watched
from export.int8.weights import CODE_MAX, quantised
from export.runner import Runner

LEAST_CHANNELS = 16  # in and out: below, the product is too narrow to win, and the last one is the picture itself


def convolutions_of(graph: ir.Graph) -> list[ir.Node]:
    """The 2-d convolutions of `graph` that are worth 8 bits, in its order; their weights are initializers."""
    return [node for node in graph if node.op_type == "Conv" and not node.domain and _is_wide(node)]


def watched_values(convolutions: Sequence[ir.Node]) -> list[ir.Value]:
    """What has to have a span: what the convolutions read and what they make."""
    values = (value for node in convolutions for value in (node.inputs[0], node.outputs[0]) if value is not None)
    return list(dict.fromkeys(values))


def quantise_convolutions(model: ir.Model, spans: Mapping[str, Span], kept: Set[str] = frozenset()) -> int:
    """Rewrites every wide convolution but those `kept` by node name, in place; returns how many. Needs opset 10 on."""
    graph = model.graph
    chosen = [node for node in convolutions_of(graph) if node.name not in kept]
    for node in chosen:
        nodes = _quantised(graph, node, spans)
        graph.insert_before(node, nodes)
        result, old = nodes[-1].outputs[0], node.outputs[0]
        result.name, old.name = old.name, f"{old.name}_in_float32"
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        graph.initializers.pop(name)
    return len(chosen)


@dataclass(frozen=True)
class ConvolutionError:
    """Of one convolution in 8 bits, on the float32 input: relative L2 errors, the worst of all samples.

    A decoder adds branches to a stream. What a branch has wrong is less of the sum, in the share of the norms; a
    convolution of the stream itself (an upsampler, a shortcut) hands on all that it has wrong. In a VAE both kinds have
    the same `own` error, and the picture has 64 dB with one of the first, 38 with one of the second (ADR 0022).
    """

    own: float  # of its output
    carried: float  # of the sum that its output goes into, as itself or as the branch that it is part of


def errors_of_convolutions(
    model: ir.Model, spans: Mapping[str, Span], samples: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, ConvolutionError]:
    """By node name; all in one run a sample. `model` is left as it was."""
    both = model.clone()
    graph = both.graph
    looked_at: dict[str, tuple[ir.Value, ...]] = {}  # by name: the difference, the output; the branch and its sum
    for node in convolutions_of(graph):
        looked_at[node.name or ""] = (node.outputs[0], *(branch_and_sum(graph, node) or ()))
    for node in convolutions_of(graph):
        nodes = _quantised(graph, node, spans)
        difference = ir.node("Sub", [nodes[-1].outputs[0], node.outputs[0]])
        difference.outputs[0].name = f"{node.name}_difference"
        node.append([*nodes, difference])
        looked_at[node.name or ""] = (difference.outputs[0], *looked_at[node.name or ""])
    values = list(dict.fromkeys(value for row in looked_at.values() for value in row))
    errors = {name: ConvolutionError(0.0, 0.0) for name in looked_at}
    with watched(both, [(value, "ReduceSumSquare") for value in values]) as names, Runner(both) as runner:
        for outputs in runner.run_all(samples):
            norm = {value: float(np.sqrt(outputs[name])) for value, name in zip(values, names, strict=True)}
            for name, (wrong, whole, *joined) in looked_at.items():
                own = _ratio(norm[wrong], norm[whole])
                share = _ratio(*(norm[value] for value in joined)) if joined else 1.0
                errors[name] = ConvolutionError(max(errors[name].own, own), max(errors[name].carried, own * share))
    return errors


def branch_and_sum(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Where what `node` makes is first added to something that does not come from it: that addend, and the sum.

    None if there is no such place: all that follows comes from it. Constants do not count, they are biases.
    """
    behind = {node.outputs[0]}
    for later in graph:
        came = [value for value in later.inputs if value in behind]
        if not came:
            continue
        others = [v for v in later.inputs if v is not None and v not in behind and v.const_value is None]
        if later.op_type == "Add" and others:
            return came[0], later.outputs[0]
        behind.update(later.outputs)
    return None


def _ratio(part: float, whole: float) -> float:
    return part / max(whole, float(np.finfo(np.float32).tiny))


def _is_wide(node: ir.Node) -> bool:
    weight = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or (bias is not None and bias.const_value is None) or len(weight.shape) != 4:
        return False
    out_channels, in_channels, *_ = weight.shape.numpy()
    return min(out_channels, in_channels) >= LEAST_CHANNELS and node.attributes.get_int("group", 1) == 1


def _quantised(graph: ir.Graph, node: ir.Node, spans: Mapping[str, Span]) -> list[ir.Node]:
    """The three nodes that stand for `node`; their initializers are registered with `graph`."""
    source, weight = node.inputs[0], node.inputs[1]
    assert source is not None, "a convolution reads something"
    assert weight is not None, "its weight is an initializer (_is_wide)"
    assert weight.const_value is not None, "its weight is an initializer (_is_wide)"
    into, out_of = spans[source.name or ""], spans[node.outputs[0].name or ""]
    weight_scale = channel_scales(weight.const_value.numpy())
    bias = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    addend = np.zeros(len(weight_scale)) if bias is None else bias.numpy().astype(np.float64)
    # The sum has this scale; a bias beyond int32 is one that no picture has.
    limit = np.iinfo(np.int32)
    whole = np.clip(np.rint(addend / (np.float64(into.scale) * weight_scale)), limit.min, limit.max).astype(np.int32)

    def constant(what: str, array: np.ndarray) -> ir.Value:
        return _initializer(graph, ir.tensor(array, name=f"{node.name}_{what}"))

    of_input = (constant("input_scale", np.array(into.scale)), constant("input_zero", np.array(into.zero_point)))
    of_output = (constant("output_scale", np.array(out_of.scale)), constant("output_zero", np.array(out_of.zero_point)))
    in_8_bits = _initializer(graph, _int8_weight(f"{weight.name}_int8", weight.const_value, weight_scale))
    of_weight = (constant("weight_scale", weight_scale), constant("weight_zero", np.zeros_like(weight_scale, np.int8)))
    quantise = ir.node("QuantizeLinear", [source, *of_input])
    convolve = ir.node(
        "QLinearConv",
        [quantise.outputs[0], *of_input, in_8_bits, *of_weight, *of_output, constant("bias", whole)],
        dict(node.attributes),
    )
    dequantise = ir.node("DequantizeLinear", [convolve.outputs[0], *of_output])
    made = ((quantise, "quantised", source.shape), (convolve, "convolved", node.outputs[0].shape))
    for added, what, shape in made:
        added.outputs[0].name, added.outputs[0].dtype = f"{node.name}_{what}", ir.DataType.UINT8
        added.outputs[0].shape = shape
    result = dequantise.outputs[0]
    result.name, result.dtype, result.shape = f"{node.name}_dequantised", ir.DataType.FLOAT, node.outputs[0].shape
    for added, what in ((quantise, "quantise"), (convolve, "convolve"), (dequantise, "dequantise")):
        added.name = f"{node.name}_{what}"
        added.metadata_props.update(node.metadata_props)
    return [quantise, convolve, dequantise]


def channel_scales(weight: np.ndarray) -> np.ndarray:
    """float32 [out channels] for a weight [out, in, kh, kw]; 1 for a channel of zeros.

    The least with which codes are at most 127 and neighbouring ones do not saturate (weights.py), whether the kernel
    takes the channels of a tap one after the other (channels last, as ONNX Runtime does) or the taps of a channel.
    """
    channels_last = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    taps_last = weight.reshape(weight.shape[0], -1).T
    scales = np.maximum(*(quantised(np.ascontiguousarray(rows))[1] for rows in (channels_last, taps_last)))
    return np.where(scales > 0, scales, 1.0).astype(np.float32)


def _int8_weight(name: str, tensor: ir.TensorProtocol, scales: np.ndarray) -> ir.LazyTensor:
    """int8 [out, in, kh, kw], computed when it is written: the model is never in memory in both precisions."""

    def convert() -> ir.TensorProtocol:
        levels = np.rint(tensor.numpy() / scales[:, None, None, None])
        return ir.Tensor(np.clip(levels, -CODE_MAX, CODE_MAX).astype(np.int8), name=name)

    load: Callable[[], ir.TensorProtocol] = convert
    return ir.LazyTensor(load, dtype=ir.DataType.INT8, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    known = graph.initializers.get(tensor.name or "")
    if known is not None:  # two convolutions with one weight share it
        return known
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
