"""Eight-bit integers written into the loop's graph (`--precision int8`), with layers that stay in float32 by measure.

layers_of(model)                      what can be quantised                               layers.py
write_int8(model, layers, factors)    codes and scales, lazily; one quantised activation  nodes.py, weights.py
smoothing(model, samples)             what makes an activation's channels alike            smoothing.py
local_errors(model, samples, factors) what it does to each layer's own output             errors.py
choose(…)                             which layers stay, by the prediction and picture    choice.py
choose_convolutions(…)                the same of the decoder                             decoder.py, convolutions.py
"""

from export.int8.choice import DecoderReport, Gate, Int8Report, KeptLayer, choose
from export.int8.errors import LocalErrors, local_errors
from export.int8.layers import Layer, layers_of
from export.int8.nodes import write_int8
from export.int8.smoothing import Factors, smoothing
from export.int8.weights import quantised

__all__ = [
    "DecoderReport", "Factors", "Gate", "Int8Report", "KeptLayer", "Layer", "LocalErrors", "choose", "layers_of",
    "local_errors", "quantised", "smoothing", "write_int8",
]  # fmt: skip
