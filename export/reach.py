"""How far the checks of an export go within the memory that it is given (`--memory`).

No check needs all weights in memory: torch reads a layer when it is called, and ONNX Runtime is given a graph segment
by segment. What a large model costs is time, and so the number decides how much of it is worth spending. A graph whose
weights, in float32, are more than the memory is beyond it: it is compared with torch once, on one row, as it is
written (and in float32, where it is written in half); it is not run again after every phase of the compiler. If all
graphs together are more, no trajectory is run. What is left out is said in parity.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from latentc.schema import Unverified
from torch import nn

from export.step import FusedStep

DEFAULT_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Reach:
    """The memory, and what each graph's weights would take of it in float32; bytes."""

    memory_bytes: int
    weight_bytes: Mapping[str, int]

    def is_beyond(self, graph: str) -> bool:
        """Whether a graph (of the traced ones: text encoders, denoise, decode, encode) is compared only once."""
        return self.weight_bytes[graph] > self.memory_bytes

    @property
    def runs_trajectory(self) -> bool:
        """Whether a whole request is drawn and compared with the diffusers pipeline."""
        return sum(self.weight_bytes.values()) <= self.memory_bytes

    def unverified(self) -> tuple[Unverified, ...]:
        """What the report has to say is missing."""
        found = [
            Unverified(tensor=f"{name}/phases", reason=f"its weights take {_size(num_bytes)} in float32, {self._limit}")
            for name, num_bytes in self.weight_bytes.items()
            if self.is_beyond(name)
        ]
        if not self.runs_trajectory:
            total = _size(sum(self.weight_bytes.values()))
            found.append(Unverified(tensor="trajectory", reason=f"all weights take {total} in float32, {self._limit}"))
        return tuple(found)

    @property
    def _limit(self) -> str:
        return f"and --memory is {_size(self.memory_bytes)}"


def reach_of(step: FusedStep, memory_bytes: int, encode: bool) -> Reach:
    """What the modules of `step` hold against `memory_bytes`."""
    model = step.model
    modules: dict[str, nn.Module] = {encoder.name: encoder.module for encoder in model.text_encoders}
    modules |= {"denoise": step.denoise, "decode": step.decode}
    if encode and model.encoder is not None:
        modules["encode"] = model.encoder
    sizes = {name: sum(4 * p.numel() for p in module.parameters()) for name, module in modules.items()}
    return Reach(memory_bytes, sizes)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
