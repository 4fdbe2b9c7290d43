"""How far values reach on calibration inputs: what a fixed scale of 8 bits has to cover.

Each watched value gets its smallest and largest element as two scalars behind it, and only these are outputs: memory
stays that of one run (as in calibration.py, which asks for magnitudes).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError

from export.int8.watching import watched
from export.runner import Runner

ROOM = 1.1  # inputs that the calibration did not hold may reach somewhat further; costs 0.8 dB (ADR 0022)
_LEVELS = 255
_LEAST_SCALE = 2.0**-100  # of a value that is always 0


@dataclass(frozen=True)
class Span:
    """The interval [low, high], which holds 0, as 256 levels of uint8."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """The distance of two levels."""
        return np.float32(max((self.high - self.low) / _LEVELS, _LEAST_SCALE))

    @property
    def zero_point(self) -> np.uint8:
        """The level that is exactly 0: padding must add nothing."""
        return np.uint8(np.clip(np.rint(-self.low / self.scale), 0, _LEVELS))


def spans_of(
    model: ir.Model, values: Sequence[ir.Value], samples: Sequence[Mapping[str, np.ndarray]], room: float = ROOM
) -> dict[str, Span]:
    """By name, over all samples; `model` is left as it was. Raises LatentcError where a value is infinite or NaN."""
    scalars = [(value, operator) for value in values for operator in ("ReduceMin", "ReduceMax")]
    low, high = dict.fromkeys((value.name or "" for value in values), 0.0), {}
    high = dict(low)
    with watched(model, scalars) as names, Runner(model) as runner:
        for outputs in runner.run_all(samples):
            for (value, operator), name in zip(scalars, names, strict=True):
                reached = float(outputs[name])
                if not np.isfinite(reached):
                    raise LatentcError(f"calibration: {value.name!r} is {reached} in float32 already")
                key = value.name or ""
                if operator == "ReduceMin":
                    low[key] = min(low[key], reached)
                else:
                    high[key] = max(high[key], reached)
    return {name: Span(room * low[name], room * high[name]) for name in low}
