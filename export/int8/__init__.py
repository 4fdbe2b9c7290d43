"""Eight-bit integers written into the loop's graph (`--precision int8`), with the layers that stay in float32 by measure.

layers_of(model)                      what can be quantised                               layers.py
write_int8(model, layers)             codes and scales, lazily; one quantised activation  nodes.py, weights.py
local_errors(model, samples)          what it does to each layer's own output             errors.py
choose(…)                             which layers stay, by the prediction and picture    choice.py
"""

from export.int8.choice import Gate, Int8Report, KeptLayer, choose
from export.int8.errors import LocalErrors, local_errors
from export.int8.layers import Layer, layers_of
from export.int8.nodes import write_int8
from export.int8.weights import quantised

__all__ = [
    "Gate", "Int8Report", "KeptLayer", "Layer", "LocalErrors", "choose", "layers_of", "local_errors", "quantised",
    "write_int8",
]  # fmt: skip
