"""What int8 does to each layer's own output, all layers in one pass: relative L2 on the inputs that float32 gives them.

Beside each layer its int8 form is computed from the same activation, and two sums of squares are outputs: of the
difference, and of the layer. The tensors are freed after their last use and the weights read segment by segment: it
takes the memory of one run, whatever the size of the model. What a layer's error does further on is not seen here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError

from export.int8.layers import layers_of
from export.int8.nodes import DOMAIN, int8_product, quantised_activation
from export.int8.smoothing import Factors, groups_of
from export.runner import Runner


@dataclass(frozen=True)
class LocalErrors:
    """The largest error over all samples by layer, and the float32 graph's outputs for each sample."""

    errors: Mapping[str, float]
    outputs: tuple[Mapping[str, np.ndarray], ...]


def local_errors(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]], factors: Factors) -> LocalErrors:
    """Runs `model` on every sample; it is left as it was. `factors` are those of `smoothing`.

    Raises LatentcError where a layer's output is not finite.
    """
    names = [value.name or "" for value in model.graph.outputs]
    probed = model.clone()
    graph = probed.graph
    graph.opset_imports[DOMAIN] = 1
    layers = layers_of(probed)
    quantised: dict[ir.Value, ir.Node] = {}
    for x, group in groups_of(layers).items():
        divided, divisor = _divided(graph, x, factors.get(x.name or ""))
        quantised[x] = quantised_activation(divided)
        group[0].node.prepend([*divisor, quantised[x]])
    for index, layer in enumerate(layers):
        end, x = layer.add or layer.node, layer.activation
        product = int8_product(graph, layer, tuple(quantised[x].outputs), factors.get(x.name or ""))
        difference = ir.node("Sub", [product.outputs[0], layer.result])
        nodes = [product, difference]
        for kind, value in (("error", difference.outputs[0]), ("size", layer.result)):
            total = ir.node("ReduceSumSquare", [value], {"keepdims": 0})  # without axes: over all dims
            total.outputs[0].name = f"{kind}_of::{index}"
            total.outputs[0].dtype, total.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(())
            nodes.append(total)
            graph.outputs.append(total.outputs[0])
        difference.outputs[0].name = f"difference_of::{index}"
        end.append(nodes)
    found = dict.fromkeys((layer.name for layer in layers), 0.0)
    with Runner(probed) as runner:
        outputs = runner.run_all(samples)
    for values in outputs:
        for index, layer in enumerate(layers):
            error, size = (float(values[f"{kind}_of::{index}"]) for kind in ("error", "size"))
            if not (np.isfinite(error) and np.isfinite(size)):
                raise LatentcError(
                    f"calibration: the output of {layer.name!r} is not finite, in float32 or in int8; give a source "
                    "whose weights are, or leave --precision int8 away"
                )
            found[layer.name] = max(found[layer.name], (error / size) ** 0.5 if size else 0.0 if not error else np.inf)
    return LocalErrors(found, tuple({name: values[name] for name in names} for values in outputs))


def _divided(graph: ir.Graph, x: ir.Value, factors: np.ndarray | None) -> tuple[ir.Value, list[ir.Node]]:
    """x / factors as it will be, here by a node of its own."""
    if factors is None:
        return x, []
    name = f"factors_of::{x.name}"
    constant = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(factors.shape),
        const_value=ir.tensor(factors, name=name),
    )
    graph.register_initializer(constant)
    node = ir.node("Div", [x, constant])
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = (
        f"divided::{x.name}",
        ir.DataType.FLOAT,
        x.shape,
    )
    return node.outputs[0], [node]
