"""What int8 does to each layer's own output, all layers in one pass: relative L2 on the inputs that float32 gives them.

Beside each layer its int8 form is computed from the same activation, and two sums of squares are outputs: of the
difference, and of the layer. The tensors are freed after their last use and the weights read segment by segment, so that
it takes the memory of one run, whatever the size of the model. What a layer's error does further on is not seen here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError

from export.int8.layers import layers_of
from export.int8.nodes import DOMAIN, int8_product, quantised_activation
from export.runner import Runner


@dataclass(frozen=True)
class LocalErrors:
    """The largest error over all samples by layer, and the float32 graph's outputs for each sample."""

    errors: Mapping[str, float]
    outputs: tuple[Mapping[str, np.ndarray], ...]


def local_errors(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> LocalErrors:
    """Runs `model` on every sample; it is left as it was. Raises LatentcError where a layer's output is not finite."""
    names = [value.name or "" for value in model.graph.outputs]
    probed = model.clone()
    graph = probed.graph
    graph.opset_imports[DOMAIN] = 1
    layers = layers_of(probed)
    quantised: dict[ir.Value, ir.Node] = {}
    for index, layer in enumerate(layers):
        if layer.activation not in quantised:
            quantised[layer.activation] = quantised_activation(layer.activation)
            layer.node.prepend(quantised[layer.activation])
        end = layer.add or layer.node
        product = int8_product(graph, layer, tuple(quantised[layer.activation].outputs))
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
