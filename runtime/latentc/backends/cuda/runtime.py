"""The calls of the CUDA runtime that latentc makes, each checked, through cuda-bindings.

Knows nothing of tensors. Addresses, streams, events and graphs are plain integers or the binding's own handles. One
device, the first that is visible: CUDA_VISIBLE_DEVICES chooses another.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from latentc.errors import BackendError

# cuda-bindings 12 and 13 have the first; cuda-python of CUDA 11 and early 12 the second.
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NON_BLOCKING = 1  # cudaStreamNonBlocking: not ordered with the default stream, which cannot be captured


@dataclass(frozen=True)
class Device:
    """What an engine depends on, and how much memory there is."""

    name: str
    compute_capability: str  # "8.7"
    total_bytes: int

    @property
    def sm(self) -> str:
        """As compilers write it: sm87."""
        return "sm" + self.compute_capability.replace(".", "")


class Cuda:
    """The runtime, opened. All methods raise BackendError where CUDA reports an error."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._kinds = module.cudaMemcpyKind

    def device(self) -> Device:
        """The first visible device; raises BackendError if there is none, or no driver for it."""
        (count,) = self._call("cudaGetDeviceCount")
        if not count:
            raise BackendError("CUDA sees no GPU; nvidia-smi lists them, CUDA_VISIBLE_DEVICES may hide them")
        (properties,) = self._call("cudaGetDeviceProperties", 0)
        name = properties.name
        text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        capability = f"{properties.major}.{properties.minor}"
        return Device(text.strip("\0 "), capability, int(properties.totalGlobalMem))

    def versions(self) -> str:
        """The newest CUDA that the driver supports, and the runtime's own."""
        (driver,) = self._call("cudaDriverGetVersion")
        (runtime,) = self._call("cudaRuntimeGetVersion")
        return f"driver {driver // 1000}.{driver % 1000 // 10}, runtime {runtime // 1000}.{runtime % 1000 // 10}"

    def free_and_total_bytes(self) -> tuple[int, int]:
        """Device memory; on Jetson that of the whole machine."""
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, num_bytes: int) -> int:
        """An address aligned to at least 256 bytes."""
        status, (address,) = self._invoke("cudaMalloc", num_bytes)
        if int(status) == _OUT_OF_MEMORY:
            free, total = self.free_and_total_bytes()
            raise BackendError(
                f"no device memory for {num_bytes / 1e6:.0f} MB more: {free / 1e6:.0f} of {total / 1e6:.0f} MB are "
                "free; try a smaller -b or size, --prologue cpu, or engines built with --weight-streaming"
            )
        self._check("cudaMalloc", status)
        return int(address)

    def free(self, address: int) -> None:
        """Gives memory back; waits for the device."""
        self._call("cudaFree", address)

    def clear(self, address: int, num_bytes: int, stream: Any) -> None:
        """Sets bytes to zero, in the order of `stream`."""
        self._call("cudaMemsetAsync", address, 0, num_bytes, stream)

    def copy(self, target: int, source: int, num_bytes: int, kind: str, stream: Any) -> None:
        """Copies bytes, in the order of `stream`; `kind` is HostToDevice, DeviceToHost or DeviceToDevice."""
        self._call("cudaMemcpyAsync", target, source, num_bytes, self._kind(kind), stream)

    def copy_rows(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        rows: int,
        kind: str,
        stream: Any,
    ) -> None:
        """Copies `rows` rows of `width` bytes that begin every `…_pitch` bytes."""
        arguments = (target, target_pitch, source, source_pitch, width, rows, self._kind(kind), stream)
        self._call("cudaMemcpy2DAsync", *arguments)

    def stream(self) -> Any:
        """A stream that can be captured."""
        (stream,) = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        return stream

    def drop_stream(self, stream: Any) -> None:
        """Frees a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronise(self, stream: Any) -> None:
        """Waits until all that was enqueued is done; errors of that work are raised here."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: Any) -> None:
        """From here on what is enqueued is recorded, not run; what other threads do is not our business."""
        mode = self._module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """The recording, made executable."""
        (graph,) = self._call("cudaStreamEndCapture", stream)
        try:
            (executable,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return executable

    def abandon_capture(self, stream: Any) -> None:
        """Ends a recording that failed; what it returns is an error by design, and looked at by no one."""
        self._module.cudaStreamEndCapture(stream)
        self._module.cudaGetLastError()

    def launch(self, executable: Any, stream: Any) -> None:
        """Enqueues a recording."""
        self._call("cudaGraphLaunch", executable, stream)

    def drop_graph(self, executable: Any) -> None:
        """Frees a recording."""
        self._call("cudaGraphExecDestroy", executable)

    def event(self, stream: Any) -> Any:
        """An event that is recorded at the present end of `stream`."""
        (event,) = self._call("cudaEventCreate")
        self._call("cudaEventRecord", event, stream)
        return event

    def elapsed_ms(self, earlier: Any, later: Any) -> float:
        """Between two recorded events; waits for the later one."""
        self._call("cudaEventSynchronize", later)
        (elapsed,) = self._call("cudaEventElapsedTime", earlier, later)
        return float(elapsed)

    def drop_event(self, event: Any) -> None:
        """Frees an event."""
        self._module.cudaEventDestroy(event)

    def _kind(self, kind: str) -> Any:
        return getattr(self._kinds, f"cudaMemcpy{kind}")

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        status, values = self._invoke(name, *arguments)
        self._check(name, status)
        return values

    def _invoke(self, name: str, *arguments: Any) -> tuple[Any, list[Any]]:
        """A status, and what came with it."""
        try:
            status, *values = getattr(self._module, name)(*arguments)
        except RuntimeError as error:  # cuda-bindings 12 raises where there is no libcuda; 13 returns a status
            raise BackendError(f"CUDA: {name}: {error}; is the NVIDIA driver installed?") from None
        return status, values

    def _check(self, name: str, status: Any) -> None:
        """The one place where a status of CUDA is looked at."""
        if int(status) == 0:
            return
        _, text = self._module.cudaGetErrorString(status)
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise BackendError(f"CUDA: {name}: {words} ({getattr(status, 'name', status)})")


def open_cuda() -> Cuda:
    """The CUDA runtime; raises BackendError, with what to install, if there is no binding for it."""
    for name in _MODULES:
        try:
            return Cuda(importlib.import_module(name))
        except ImportError:
            continue
    raise BackendError('cuda-bindings are not installed; pip install "latentc[tensorrt]" or "latentc[cuda]"')
