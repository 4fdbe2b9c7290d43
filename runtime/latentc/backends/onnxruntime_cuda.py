"""ONNX Runtime on an NVIDIA GPU: the road for graphs that TensorRT does not take, and for machines without it.

Buffers are device memory; sessions run on this lane's stream and do not wait. ONNX Runtime's own CUDA graphs
(`enable_cuda_graph`) replay one run at fixed addresses; the loop moves addresses from step to step, so each step gets
a graph of its own, by `gpu_graph_id`. That the loop as a whole is replayed by one launch is TensorRT's alone.
"""

import platform
import sys

import numpy as np
import onnxruntime

from latentc.backends.cuda.lane import DeviceInstant, DeviceLoopMemory, Lane
from latentc.backends.cuda.memory import DeviceBuffer, device_buffer
from latentc.backends.cuda.runtime import Cuda, open_cuda
from latentc.backends.onnxruntime import OnnxRuntimeBackend, checked, session_of
from latentc.backends.options import EngineOptions
from latentc.backends.protocol import Buffer
from latentc.backends.session_options import session_options
from latentc.bundle import GraphBytes
from latentc.errors import BackendError
from latentc.pages import release

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"
MAX_GRAPHS = 256  # recorded runs of one engine; what comes after is enqueued as it is
_NO_GRAPH = "-1"  # ONNX Runtime's own word for it


def open_backend(threads: int, options: EngineOptions) -> "OnnxRuntimeCudaBackend":
    """ONNX Runtime on the first GPU; BackendError says what is missing."""
    if options.given():
        raise BackendError(f"backend onnxruntime-cuda has no {', '.join(options.given())}; these are for tensorrt")
    if PROVIDER not in onnxruntime.get_available_providers():
        raise BackendError(
            f"this onnxruntime {onnxruntime.__version__} has no CUDA; pip uninstall onnxruntime, then "
            'pip install "latentc[cuda]"'
        )
    return OnnxRuntimeCudaBackend(threads, open_cuda())


class OnnxRuntimeCudaEngine:
    """A session with its bindings to device memory."""

    def __init__(self, name: str, session: onnxruntime.InferenceSession, lane: Lane, records: bool) -> None:
        self._name, self._session, self._lane = name, session, lane
        self._binding = session.io_binding()
        self._inputs = {value.name for value in session.get_inputs()}
        self._outputs = {value.name for value in session.get_outputs()}
        self._bound: dict[str, DeviceBuffer] = {}
        self._records = records
        self._graphs: dict[tuple[tuple[str, int, tuple[int, ...]], ...], str] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        if not isinstance(buffer, DeviceBuffer):
            raise TypeError(f"{type(buffer).__name__} is not a buffer of this backend")
        if name not in self._inputs | self._outputs:
            names = ", ".join(sorted(self._inputs | self._outputs))
            raise BackendError(f"graph {self._name} has no tensor {name}; it has {names}")
        bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
        bind(name, DEVICE, 0, buffer.dtype.type, buffer.shape, buffer.address)
        self._bound[name] = buffer

    def run(self) -> None:
        missing = (self._inputs | self._outputs) - self._bound.keys()
        if missing:
            raise BackendError(f"graph {self._name} has nothing bound to {', '.join(sorted(missing))}")
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._records:
            options.add_run_config_entry("gpu_graph_id", self._graph_id())
        checked(f"graph {self._name} cannot be run", lambda: self._session.run_with_iobinding(self._binding, options))

    def close(self) -> None:
        self._lane.pool.synchronise()
        self._bound.clear()
        del self._binding, self._session

    def _graph_id(self) -> str:
        """The number of the recording of exactly this binding."""
        key = tuple((name, buffer.address, buffer.shape) for name, buffer in sorted(self._bound.items()))
        if key not in self._graphs and len(self._graphs) >= MAX_GRAPHS:
            return _NO_GRAPH
        return self._graphs.setdefault(key, str(len(self._graphs) + 1))


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """Sessions on the first GPU; engines are optimised graphs, as on the CPU."""

    def __init__(self, threads: int, cuda: Cuda) -> None:
        super().__init__(threads)
        self._cuda = cuda
        self._device = cuda.device()
        self._stream_lane = Lane(cuda, captures=False)

    @property
    def name(self) -> str:
        return f"onnxruntime-cuda {onnxruntime.__version__}"

    @property
    def target(self) -> str:
        return f"onnxruntime-cuda-{self._device.sm}"

    def engine_key(self) -> dict[str, str]:
        gpu = {"gpu": self._device.name, "compute_capability": self._device.compute_capability}
        return {"onnxruntime": onnxruntime.__version__, "machine": platform.machine(), "optimisation": "all", **gpu}

    def buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceBuffer:
        return device_buffer(self._stream_lane.pool, shape, dtype)

    def loop_memory(self) -> DeviceLoopMemory:
        return DeviceLoopMemory(self._stream_lane)

    def lane(self) -> "OnnxRuntimeCudaBackend":
        raise BackendError(
            "onnxruntime-cuda has one lane: a session belongs to its stream; --backend tensorrt has more"
        )

    def now(self) -> DeviceInstant:
        return DeviceInstant(self._stream_lane)

    def memory_bytes(self) -> int:
        free, total = self._cuda.free_and_total_bytes()
        return total - free

    def _engine(self, graph: GraphBytes, optimise: bool, mapped: bool) -> OnnxRuntimeCudaEngine:
        options = session_options(self._threads, optimise, mapped)
        try:
            session, records = session_of(graph, options, self._providers(records=True)), True
        except BackendError as error:
            # A node that must run on the CPU (a shape, say) forbids recording, not running.
            if "graph" not in str(error).lower():
                raise
            print(f"latentc: graph {graph.name} is run without CUDA graphs: {error}", file=sys.stderr)
            session, records = session_of(graph, options, self._providers(records=False)), False
        release(graph.weights)
        return OnnxRuntimeCudaEngine(graph.name, session, self._stream_lane, records)

    def _session(self, graph: GraphBytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        return session_of(graph, options, self._providers(records=False))

    def _providers(self, records: bool) -> list[str | tuple[str, dict[str, str]]]:
        settings = {
            "device_id": "0",
            "user_compute_stream": str(int(self._stream_lane.stream)),
            "use_tf32": "0",
            "enable_cuda_graph": "1" if records else "0",
        }
        return [(PROVIDER, settings), "CPUExecutionProvider"]
