"""Half precision written into the graph (`--precision fp16`), with float32 islands that carry their reasons.

result = to_half(model, calibration, islands)      # export/precision/half.py, the one entry
"""

from export.precision.half import HalfReport, HalfResult, IslandNode, to_half
from export.precision.rounding import with_every_result_rounded
from export.precision.rules import Island
from export.precision.weights import WeightFit

__all__ = ["HalfReport", "HalfResult", "Island", "IslandNode", "WeightFit", "to_half", "with_every_result_rounded"]
