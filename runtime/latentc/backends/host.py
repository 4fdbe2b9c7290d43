"""Memory of the host for backends that run there: numpy arrays as buffers, the loop's memory, and the clock."""

import resource
import sys
import time
from collections.abc import Callable, Hashable

import numpy as np

from latentc.backends.protocol import Array, Buffer


class HostBuffer:
    """A numpy array as a Buffer."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def view(self, index: int) -> "HostBuffer":
        return HostBuffer(self.array[index])

    def shaped(self, shape: tuple[int, ...]) -> "HostBuffer":
        return HostBuffer(self.array.reshape(shape))

    def write(self, values: Array) -> None:
        if values.shape != self.array.shape:  # copyto would broadcast
            raise ValueError(f"expected shape {list(self.array.shape)}, got {list(values.shape)}")
        np.copyto(self.array, values, casting="no")

    def read(self) -> Array:
        return self.array.copy()


class HostLoopMemory:
    """Nothing is recorded: every place is new memory, and what is on the host already stays where it is."""

    def zeros(self, place: str, shape: tuple[int, ...], dtype: type[np.generic]) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def settled(self, place: str, buffer: Buffer, rows: bool = False) -> HostBuffer:
        return buffer if isinstance(buffer, HostBuffer) else HostBuffer(buffer.read())

    def replay(self, work: Callable[[], None], kind: Hashable = None) -> None:
        work()


class HostInstant:
    """The clock of the process; the host's engines are done when they return."""

    def __init__(self) -> None:
        self.seconds = time.perf_counter()

    def ms_since(self, earlier: object) -> float:
        if not isinstance(earlier, HostInstant):
            raise TypeError(f"{type(earlier).__name__} is no instant of the host")
        return (self.seconds - earlier.seconds) * 1e3


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
