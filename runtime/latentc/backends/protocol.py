"""What a backend is: it makes buffers and engines. It knows no loop, no solver and no family.

Binding is by name, to memory that stays where it is: TensorRT's set_tensor_address and ONNX Runtime's
IO binding both work this way, so that the loop only moves pointers. `Engine.run` may return before
the work is done; `Buffer.read` waits for it.

A backend may record a whole loop once and replay it for later requests of the same shape (a CUDA graph). Then all that
the loop reads and writes must lie where it lay before: `LoopMemory` deals out such places, and replays.
"""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from latentc.backends.options import EngineOptions
from latentc.bundle import GraphBytes
from latentc.schema import Manifest

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


class LoopMemory(Protocol):
    """The memory of one request's loop. Beginning another request in the same lane ends this one's claim to it."""

    def zeros(self, place: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Buffer:
        """All zero; where loops are recorded, the same memory again for the same place, shape and dtype."""

    def settled(self, place: str, buffer: Buffer, rows: bool = False) -> Buffer:
        """The contents of `buffer`, perhaps another backend's, in such a place; `rows`: each row is bound alone."""

    def replay(self, work: Callable[[], None], kind: Hashable = None) -> None:
        """Does `work`, which only binds what was dealt out here and runs engines; or replays its recording.

        `kind` tells two loops over the same places apart: which engine runs in which call.
        """


class Instant(Protocol):
    """A point in the backend's stream of work."""

    def ms_since(self, earlier: "Instant") -> float:
        """Milliseconds between the two; waits until both have come."""


class Backend(Protocol):
    """One way to execute graphs on this machine. `name` is the backend's name and version."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str:
        """The name of the directory in engines/ that holds this backend's engines for this machine."""

    @property
    def targets(self) -> str:
        """A pattern (fnmatch) of all directories in engines/ that may hold engines that run here."""

    @property
    def needs_engines(self) -> bool:
        """Whether only built engines can be run: making them takes too long to do it by the way."""

    def engine_key(self) -> dict[str, str]:
        """All that an engine depends on but its graph and its options: versions, the machine."""

    def build_options(self) -> dict[str, str]:
        """What was asked of the engines that `build_engine` makes."""

    def refusal(self, key: Mapping[str, str], options: Mapping[str, str]) -> str | None:
        """Why an engine with this record cannot run here; None if it can."""

    def buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Buffer:
        """New memory, all zero."""

    def loop_memory(self) -> LoopMemory:
        """The memory of a new request's loop."""

    def lane(self) -> "Backend":
        """The same backend with memory and a stream of its own: what runs there runs beside what runs here."""

    def adopted(self, engine: Engine) -> Engine:
        """The same engine, of another lane of this backend, with its weights shared and bindings of its own here."""

    def now(self) -> Instant:
        """The present end of the work that was enqueued."""

    def memory_bytes(self) -> int:
        """Memory in use: of the device, or of the process (its peak) where there is none."""

    def load_graph(self, graph: GraphBytes, *, optimise: bool = True, mapped: bool = False) -> Engine:
        """An engine from a portable graph; `optimise=False` runs the graph node by node, as it is written.

        `mapped` leaves the weights where they are, in pages of the bundle's file, and is slower for it. A backend that
        cannot do that raises BackendError, in one line.
        """

    def build_engine(self, graph: GraphBytes, directory: Path, manifest: Manifest) -> list[str]:
        """Writes the engine of `graph` into `directory` and returns the names of its files."""

    def load_engine(self, name: str, files: dict[str, memoryview], graph: GraphBytes) -> Engine:
        """An engine from what `build_engine` wrote for the graph `name`; the bytes are already hashed."""


class BackendModule(Protocol):
    """What a module of this package has to define."""

    def open_backend(self, threads: int, options: EngineOptions) -> Backend: ...
