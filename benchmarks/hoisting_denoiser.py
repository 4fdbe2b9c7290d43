"""What every architecture hands to the measurements: a module, its inputs, and what the compiler is told about them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.export import Dim

from export.hoist import InputClass

PROMPT, SCHEDULE, LOOP = InputClass.PROMPT, InputClass.SCHEDULE, InputClass.LOOP


@dataclass(frozen=True)
class Denoiser:
    """A module, its inputs by name, and what the compiler is told about them."""

    name: str
    make: Callable[[], nn.Module]
    examples: Callable[[], Mapping[str, Tensor]]  # in the order of forward's parameters
    dynamic: Mapping[str, Mapping[int, Dim]]
    classes: Mapping[str, InputClass]
    dims: Mapping[str, int]  # symbolic dim -> the size that the cut is made for
    timestep_scale: float = 1000.0  # the timesteps of a request lie in 0 ... timestep_scale
