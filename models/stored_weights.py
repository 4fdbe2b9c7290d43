"""Weights that stay in the source's safetensors until they are needed, one tensor at a time.

A loaded module's large parameters are stand-ins: float32 tensors of the right shape that were never written to and cost
no memory (models/stand_ins.py makes them). Each knows its StoredWeight. A module that is *called* reads its own weights
before its forward and lets them go behind it, so that a model of any size runs in the memory of its largest layer;
torch.export needs the shapes alone and reads nothing.

Only what is called is filled: a forward that takes a stand-in of another module without calling that module gets NaN.
`read_now` is for those.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

# A component with fewer bytes (in float32) keeps its weights once they were read.
HELD_BYTES = 64 << 20

_ATTRIBUTE = "_latentc_stored"


@dataclass(frozen=True)
class StoredWeight:
    """One tensor of a safetensors file, and what is added to it when it is read (LoRA)."""

    file: Path
    key: str
    shape: tuple[int, ...]  # of the parameter; the file's may differ in dims of 1
    dtype: str  # as safetensors names it: F32, BF16, F16, …
    added: tuple[Callable[[], Tensor], ...] = field(default=(), compare=False)

    @torch.no_grad()
    def read(self) -> Tensor:
        """The weight as float32, contiguous; nothing of the file stays mapped."""
        # Opened anew for each tensor: pages of a mapping that is gone are not resident.
        # numpy asks the system for large pages, torch does not: filling them costs a third of the time.
        weight = torch.from_numpy(np.empty(self.shape, np.float32))
        with safetensors.safe_open(self.file, framework="pt") as file:
            weight.copy_(file.get_tensor(self.key).reshape(self.shape))
        for make in self.added:
            weight += make().to(torch.float32).reshape(self.shape)
        return weight

    def plus(self, make: Callable[[], Tensor]) -> "StoredWeight":
        """The same, with the tensor that `make` returns added."""
        return replace(self, added=(*self.added, make))


def stored_weight(parameter: Tensor) -> StoredWeight | None:
    """Where the values of `parameter` lie, if it is a stand-in."""
    found: StoredWeight | None = getattr(parameter, _ATTRIBUTE, None)
    return found


def values_of(parameter: Tensor) -> Tensor:
    """The values of a parameter, read from its file if it is a stand-in."""
    weight = stored_weight(parameter)
    return parameter.detach() if weight is None else weight.read()


def set_stored_weight(parameter: nn.Parameter, weight: StoredWeight) -> None:
    """Makes `parameter` a stand-in of `weight`."""
    setattr(parameter, _ATTRIBUTE, weight)


def stored_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, StoredWeight]]:
    """All stand-ins of `module` under each of their names (a tied weight has several)."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        weight = stored_weight(parameter)
        if weight is not None:
            yield name, parameter, weight


def read_when_called(component: nn.Module) -> None:
    """Makes every module of `component` that owns stand-ins read them when it is called."""
    num_bytes = sum(4 * parameter.numel() for _, parameter, _ in stored_parameters(component))
    for module in component.modules():
        if any(stored_weight(parameter) is not None for parameter in module.parameters(recurse=False)):
            _ReadWhenCalled(module, holds=num_bytes <= HELD_BYTES)


def read_now(module: nn.Module) -> None:
    """Reads all weights of `module` for good: for small ones that are used without a call."""
    for _, parameter, weight in stored_parameters(module):
        parameter.data = weight.read()


class _ReadWhenCalled:
    """The two hooks around the forward of one module."""

    def __init__(self, module: nn.Module, holds: bool) -> None:
        self.holds = holds
        self._stand_ins: dict[str, Tensor] = {}  # of weights that are in memory now
        self._depth = 0
        self._module = weakref.ref(module)  # a hook that held its module would be a cycle of gigabytes
        module.register_forward_pre_hook(self._fill)
        module.register_forward_hook(self._empty, always_call=True)

    def _fill(self, module: nn.Module, _: Any) -> None:
        if torch.compiler.is_exporting():
            return
        self._depth += 1
        for name, parameter in module.named_parameters(recurse=False):
            weight = stored_weight(parameter)
            if weight is not None and name not in self._stand_ins:
                self._stand_ins[name] = parameter.data
                parameter.data = weight.read()

    def _empty(self, module: nn.Module, _: Any, __: Any) -> None:
        if torch.compiler.is_exporting() or self._depth == 0:
            return
        self._depth -= 1
        if self._depth or self.holds:
            return
        for name, stand_in in self._stand_ins.items():
            module.get_parameter(name).data = stand_in
        self._stand_ins.clear()
