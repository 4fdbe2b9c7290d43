"""ONNX Runtime on the CPU, with inputs read and outputs written in place.

A model names the files that hold its weights, and a model out of a hostile bundle can name anything.
Tried (tests/runtime/backends/test_onnxruntime.py): loaded by path, onnxruntime 1.25 and 1.32 refuse
"../x", absolute paths and links; 1.22 and 1.23 read them all. So no model is loaded by path. It goes in as
bytes, with a closed table {weights file: bytes} in place of the disk; then any other name is "not found
from the table user provided". One hole is left: nested graphs (If, Loop) do not use the table but the
disk, relative to the working directory. It is closed by making that directory /dev/null, under which
no file can be. So the bytes that run are the bytes that were hashed, and nothing else is opened; the
price is that nested graphs must hold their own weights inline.

Weights are used where they are mapped (onnxruntime 1.31; older ones copy them). What is then still copied, tried with
1.31.1 (docs/memory.md): pre-packing copies each matrix, the layout pass each convolution, and the highest level of
optimisation converts every half-precision weight to single, for good. `mapped` does without all three.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime

from latentc.backends.host import HostBuffer, HostInstant, HostLoopMemory, peak_bytes
from latentc.backends.options import EngineOptions
from latentc.backends.protocol import Buffer, Engine, Instant, LoopMemory
from latentc.backends.refusal import exact_refusal
from latentc.backends.row_parts import PartedRun, WholeRun
from latentc.backends.session_options import session_options
from latentc.backends.sessions import Sessions
from latentc.bundle import GraphBytes
from latentc.errors import BackendError
from latentc.pages import release
from latentc.schema import Manifest

_PROVIDERS = ["CPUExecutionProvider"]
_FEATURE = "add_external_initializers_from_files_in_memory"
_MOST_WORKERS = 256
_EXTERNAL_FROM_BYTES = 1024  # initialisers of this size or more go to the engine's weights file

T = TypeVar("T")


def open_backend(threads: int, options: EngineOptions) -> "OnnxRuntimeBackend":
    """The CPU backend; `threads` 0 means one thread for each core that the process may use. It has no options."""
    if options.given():
        raise BackendError(f"backend onnxruntime has no {', '.join(options.given())}; these are for --backend tensorrt")
    return OnnxRuntimeBackend(threads)


class OnnxRuntimeEngine:
    """A graph's sessions with what is bound; keeps the buffers that are bound alive, and the weights that are read."""

    def __init__(self, name: str, sessions: Sessions, weights: memoryview) -> None:
        self._name = name
        self._weights = weights
        self._sessions: Sessions | None = sessions
        self._dims = sessions.dims
        self._bound: dict[str, HostBuffer] = {}
        self._run: WholeRun | PartedRun | None = None  # fits the shapes that are bound
        self._changed: set[str] = set()  # bound since it was run

    def bind(self, name: str, buffer: Buffer) -> None:
        if not isinstance(buffer, HostBuffer):
            raise TypeError(f"{type(buffer).__name__} is not a buffer of this backend")
        if name not in self._dims:
            names = ", ".join(sorted(self._dims))
            raise BackendError(f"graph {self._name} has no tensor {name}; it has {names}")
        self._opened()
        if name not in self._bound or self._bound[name].shape != buffer.shape:
            self._run = None
        self._bound[name] = buffer
        self._changed.add(name)

    def run(self) -> None:
        sessions = self._opened()
        if self._run is None:
            missing = self._dims.keys() - self._bound.keys()
            if missing:
                raise BackendError(f"graph {self._name} has nothing bound to {', '.join(sorted(missing))}")
            self._run = sessions.run_for({name: buffer.array for name, buffer in self._bound.items()})
            self._changed = set(self._bound)
        run, changed, self._changed = self._run, self._changed, set()

        def bind_and_run() -> None:
            for name in changed:
                run.bind(name, self._bound[name].array)
            run.run()

        checked(f"graph {self._name} cannot be run", bind_and_run)

    def with_own_bindings(self) -> "OnnxRuntimeEngine":
        """The same sessions, for use beside this one."""
        return OnnxRuntimeEngine(self._name, self._opened(), self._weights)

    def close(self) -> None:
        self._sessions = self._run = None
        self._bound.clear()
        release(self._weights)

    def _opened(self) -> Sessions:
        if self._sessions is None:
            raise BackendError(f"graph {self._name} is closed: with little memory one request runs at a time")
        return self._sessions


class OnnxRuntimeBackend:
    """Makes CPU engines from graphs, and keeps optimised graphs as engine files."""

    def __init__(self, threads: int) -> None:
        if not hasattr(onnxruntime.SessionOptions, _FEATURE):
            raise BackendError(
                f"onnxruntime {onnxruntime.__version__} cannot take weights from memory, 1.24 and newer can; "
                'pip install --upgrade "latentc[cpu]"'
            )
        self._threads = threads or len(os.sched_getaffinity(0))
        # As many as there is work for at once, several requests side by side included; none before it is needed.
        self._workers = ThreadPoolExecutor(_MOST_WORKERS, "latentc-rows")

    @property
    def name(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def target(self) -> str:
        return f"onnxruntime-cpu-{platform.machine()}"

    @property
    def targets(self) -> str:
        return self.target

    @property
    def needs_engines(self) -> bool:
        return False

    def engine_key(self) -> dict[str, str]:
        return {
            "onnxruntime": onnxruntime.__version__,
            "machine": platform.machine(),
            "cpu_features_sha256": _cpu_features_sha256(),
            "optimisation": "all",
            "external_from_bytes": str(_EXTERNAL_FROM_BYTES),
        }

    def build_options(self) -> dict[str, str]:
        return {}

    def refusal(self, key: Mapping[str, str], options: Mapping[str, str]) -> str | None:
        return exact_refusal(key, self.engine_key())

    def buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Buffer:
        return HostBuffer(np.zeros(shape, dtype))

    def loop_memory(self) -> LoopMemory:
        return HostLoopMemory()

    def lane(self) -> "OnnxRuntimeBackend":
        return self  # sessions may be run by several threads at once; an engine's bindings are its own

    def adopted(self, engine: Engine) -> Engine:
        if not isinstance(engine, OnnxRuntimeEngine):
            raise TypeError(f"{type(engine).__name__} is no engine of this backend")
        return engine.with_own_bindings()

    def now(self) -> Instant:
        return HostInstant()

    def memory_bytes(self) -> int:
        return peak_bytes()

    def load_graph(self, graph: GraphBytes, *, optimise: bool = True, mapped: bool = False) -> Engine:
        return self._engine(graph, optimise, mapped)

    def build_engine(self, graph: GraphBytes, directory: Path, manifest: Manifest) -> list[str]:
        options = session_options(self._threads, optimise=True)
        model, weights = f"{graph.name}.onnx", f"{graph.name}.weights"
        options.optimized_model_filepath = str(directory / model)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_FROM_BYTES)
        )
        self._session(graph, options)
        (directory / weights).touch()  # a model without large initialisers leaves none
        return [model, weights]

    def load_engine(self, name: str, files: dict[str, memoryview], graph: GraphBytes) -> Engine:
        model, weights = f"{name}.onnx", f"{name}.weights"
        return self.load_graph(GraphBytes(name, files[model], weights, files[weights], rows=graph.rows), optimise=False)

    def _engine(self, graph: GraphBytes, optimise: bool, mapped: bool) -> Engine:
        def load(threads: int) -> onnxruntime.InferenceSession:
            session = self._session(graph, session_options(threads, optimise, mapped))
            release(graph.weights)  # what was copied is not read again, and what is mapped is read when it is used
            return session

        parts = 1 if mapped else self._threads
        return OnnxRuntimeEngine(graph.name, Sessions(load, graph, self._threads, parts, self._workers), graph.weights)

    def _session(self, graph: GraphBytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        return session_of(graph, options, _PROVIDERS)


def session_of(
    graph: GraphBytes, options: onnxruntime.SessionOptions, providers: Sequence[str | tuple[str, dict[str, str]]]
) -> onnxruntime.InferenceSession:
    """A session on the bytes of `graph`, which can reach no other file."""
    weights = np.frombuffer(graph.weights, np.uint8) if len(graph.weights) else np.empty(0, np.uint8)

    def load() -> onnxruntime.InferenceSession:
        options.add_external_initializers_from_files_in_memory([graph.weights_name], [weights], [len(weights)])
        return onnxruntime.InferenceSession(bytes(graph.model), options, providers=providers)

    return checked(f"graph {graph.name} cannot be loaded", load)


def checked(what: str, call: Callable[[], T]) -> T:
    """The one boundary to ONNX Runtime: its exceptions have no common base but Exception."""
    try:
        return call()
    except Exception as error:
        raise BackendError(f"{what}: {' '.join(str(error).split())[:500]}") from error


def _cpu_features_sha256() -> str:
    """A hash of the processor's instruction sets, which decide the layouts that ONNX Runtime picks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return hashlib.sha256(" ".join(sorted(flags.partition(":")[2].split())).encode()).hexdigest()
