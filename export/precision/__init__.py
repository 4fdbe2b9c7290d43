"""Half precision written into the graph (`--precision fp16`), with float32 islands that carry their reasons.

result = to_half(model, calibration, islands)      # export/precision/half.py: prepare, measured, half_of_measured
"""

from export.precision.calibration import Measured, measured
from export.precision.half import HalfReport, HalfResult, IslandNode, half_of_measured, prepare, to_half
from export.precision.rounding import with_every_result_rounded
from export.precision.rules import Island
from export.precision.weights import WeightFit

__all__ = [
    "HalfReport", "HalfResult", "Island", "IslandNode", "Measured", "WeightFit", "half_of_measured", "measured",
    "prepare", "to_half", "with_every_result_rounded",
]  # fmt: skip
