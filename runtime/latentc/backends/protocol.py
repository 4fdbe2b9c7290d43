"""What a backend is: it makes buffers and engines. It knows no loop, no solver and no family.

Binding is by name, to memory that stays where it is: TensorRT's set_tensor_address and ONNX Runtime's
IO binding both work this way, so that the loop only moves pointers. `Engine.run` may return before
the work is done; `Buffer.read` waits for it.
"""

from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from latentc.bundle import GraphBytes

Array: TypeAlias = npt.NDArray[np.generic]


class Buffer(Protocol):
    """A tensor in the backend's memory, C-contiguous."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def view(self, index: int) -> "Buffer":
        """The memory of row `index` along the first axis: no copy, and alive as long as this is."""

    def shaped(self, shape: tuple[int, ...]) -> "Buffer":
        """The same memory under another shape of as many elements."""

    def write(self, values: Array) -> None:
        """Copies `values`, of the same shape and dtype, from the host."""

    def read(self) -> Array:
        """A copy on the host, made after all work that writes to it is done."""


class Engine(Protocol):
    """One graph made executable, with one set of bindings."""

    def bind(self, name: str, buffer: Buffer) -> None:
        """Gives the input or output `name` its memory, for all runs until it is bound again."""

    def run(self) -> None:
        """Runs, or enqueues, the graph on what is bound."""

    def close(self) -> None:
        """Gives back all that it holds, when its work is done; it cannot be run again."""


class Backend(Protocol):
    """One way to execute graphs on this machine. `name` is the backend's name and version."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str:
        """The name of the directory in engines/ that holds this backend's engines for this machine."""

    def engine_key(self) -> dict[str, str]:
        """All that an engine depends on but its graph: versions, the machine, the options."""

    def buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Buffer:
        """New memory, all zero."""

    def load_graph(self, graph: GraphBytes, *, optimise: bool = True, mapped: bool = False) -> Engine:
        """An engine from a portable graph; `optimise=False` runs the graph node by node, as it is written.

        `mapped` leaves the weights where they are, in pages of the bundle's file, and is slower for it. A backend that
        cannot do that raises BackendError, in one line.
        """

    def build_engine(self, graph: GraphBytes, directory: Path) -> list[str]:
        """Writes the engine of `graph` into `directory` and returns the names of its files."""

    def load_engine(self, name: str, files: dict[str, memoryview]) -> Engine:
        """An engine from what `build_engine` wrote for the graph `name`; the bytes are already hashed."""


class BackendModule(Protocol):
    """What a module of this package has to define."""

    def open_backend(self, threads: int) -> Backend: ...
