"""A CUDA runtime on the host: device memory is host memory, streams are queues that run when they are waited for.

Stricter than the real one where that finds mistakes: memory begins as NaN; every access must lie inside a live
allocation; host memory is read and written when the stream runs, not when the copy is enqueued; what may not be done
while a stream is captured is an error. `record` lists what was enqueued, launched and waited for.
"""

import ctypes
import enum
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np

ALIGNMENT = 256


class cudaError_t(enum.IntEnum):
    """The statuses that occur here."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.IntEnum):
    """As in cudart."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    """As in cudart."""

    cudaStreamCaptureModeThreadLocal = 1


OK, UNSUPPORTED = cudaError_t.cudaSuccess, cudaError_t.cudaErrorStreamCaptureUnsupported
Work = Callable[[], None]


class FakeCuda:
    """The state of one fake GPU; `module()` is what stands in sys.modules for cuda.bindings.runtime."""

    def __init__(self, name: str = "Fake GPU", capability: tuple[int, int] = (8, 7), total: int = 1 << 30) -> None:
        self.name, self.capability, self.total = name, capability, total
        self.devices = 1
        self.record: list[str] = []
        self._memory: dict[int, np.ndarray] = {}  # address: the allocation's bytes
        self._streams: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._events: dict[int, float] = {}
        self._next = 1000
        self.used = 0

    def module(self) -> ModuleType:
        """The functions under their names in cudart."""
        module = ModuleType("cuda.bindings.runtime")
        for name in dir(self):
            if name.startswith("cuda"):
                setattr(module, name, getattr(self, name))
        for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode):
            setattr(module, kind.__name__, kind)
        return module

    def span(self, address: int, num_bytes: int) -> np.ndarray:
        """The bytes at an address; a wild or freed address is an error of the caller's."""
        for begin, memory in self._memory.items():
            if begin <= address and address + num_bytes <= begin + len(memory):
                return memory[address - begin : address - begin + num_bytes]
        raise AssertionError(f"{num_bytes} bytes at {address:#x} lie in no allocation")

    def capturing(self, stream: int) -> bool:
        """Whether a stream is being captured."""
        return stream in self._captures

    def enqueue(self, stream: int, what: str, work: Work) -> None:
        """Puts work into a stream, or into its recording."""
        self.record.append(f"capture {what}" if stream in self._captures else what)
        (self._captures.get(stream) if stream in self._captures else self._streams[stream]).append(work)

    # What follows has the names, arguments and results of cuda-bindings.

    def cudaGetDeviceCount(self):
        return OK, self.devices

    def cudaGetDeviceProperties(self, device):
        major, minor = self.capability
        return OK, SimpleNamespace(name=self.name.encode(), major=major, minor=minor, totalGlobalMem=self.total)

    def cudaDriverGetVersion(self):
        return OK, 12060

    def cudaRuntimeGetVersion(self):
        return OK, 12040

    def cudaGetLastError(self):
        return (OK,)

    def cudaGetErrorString(self, status):
        return OK, f"fake {status.name}".encode()

    def cudaMemGetInfo(self):
        return OK, self.total - self.used, self.total

    def cudaMalloc(self, num_bytes):
        if self._captures:
            return UNSUPPORTED, None
        if self.used + num_bytes > self.total:
            return cudaError_t.cudaErrorMemoryAllocation, None
        padded = np.full(num_bytes + ALIGNMENT, 0xFF, np.uint8)
        begin = -padded.ctypes.data % ALIGNMENT
        memory = padded[begin : begin + num_bytes]
        self._memory[memory.ctypes.data] = memory
        self.used += num_bytes
        self.record.append("malloc")
        return OK, memory.ctypes.data

    def cudaFree(self, address):
        if self._captures:
            return (UNSUPPORTED,)
        for stream in self._streams:
            self._run(stream)
        self.used -= len(self._memory.pop(address))
        self.record.append("free")
        return (OK,)

    def cudaMemsetAsync(self, address, value, num_bytes, stream):
        self.span(address, num_bytes)
        self.enqueue(stream, "clear", lambda: self.span(address, num_bytes).fill(value))
        return (OK,)

    def cudaMemcpyAsync(self, target, source, num_bytes, kind, stream):
        return self.cudaMemcpy2DAsync(target, num_bytes, source, num_bytes, num_bytes, 1, kind, stream)

    def cudaMemcpy2DAsync(self, target, target_pitch, source, source_pitch, width, rows, kind, stream):
        if stream in self._captures and kind != cudaMemcpyKind.cudaMemcpyDeviceToDevice:
            return (UNSUPPORTED,)  # memory of the host that is not pinned
        if target_pitch < width or source_pitch < width:
            return (cudaError_t.cudaErrorInvalidValue,)
        on_device = {1: (True, False), 2: (False, True), 3: (True, True)}[int(kind)]
        for address, pitch, device in zip((target, source), (target_pitch, source_pitch), on_device, strict=True):
            if device:
                self.span(address, (rows - 1) * pitch + width)

        def copy() -> None:
            for row in range(rows):
                here = self._bytes(target + row * target_pitch, width, on_device[0])
                here[:] = self._bytes(source + row * source_pitch, width, on_device[1])

        self.enqueue(stream, kind.name.removeprefix("cudaMemcpy"), copy)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == 1, "the default stream's friends cannot be captured"
        self._next += 1
        self._streams[self._next] = []
        return OK, self._next

    def cudaStreamDestroy(self, stream):
        del self._streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if stream in self._captures:
            return (UNSUPPORTED,)
        self._run(stream)
        self.record.append("synchronise")
        return (OK,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert isinstance(mode, cudaStreamCaptureMode)
        self._captures[stream] = []
        self.record.append("begin capture")
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        self._next += 1
        self._executables[self._next] = self._captures.pop(stream)
        self.record.append("end capture")
        return OK, self._next

    def cudaGraphInstantiate(self, graph, flags):
        self._next += 1
        self._executables[self._next] = self._executables[graph]
        return OK, self._next

    def cudaGraphDestroy(self, graph):
        del self._executables[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, executable):
        del self._executables[executable]
        return (OK,)

    def cudaGraphLaunch(self, executable, stream):
        works = self._executables[executable]
        self._streams[stream] += works
        self.record.append("launch")
        return (OK,)

    def cudaEventCreate(self):
        self._next += 1
        self._events[self._next] = -1.0
        return OK, self._next

    def cudaEventRecord(self, event, stream):
        def note() -> None:
            self._events[event] = time.perf_counter()

        self._streams[stream].append(note)
        return (OK,)

    def cudaEventSynchronize(self, event):
        for stream in self._streams:
            self._run(stream)
        return (OK,)

    def cudaEventElapsedTime(self, earlier, later):
        assert min(self._events[earlier], self._events[later]) > 0, "an event that was never reached"
        return OK, (self._events[later] - self._events[earlier]) * 1e3

    def cudaEventDestroy(self, event):
        self._events.pop(event, None)
        return (OK,)

    def _bytes(self, address: int, num_bytes: int, device: bool) -> np.ndarray:
        if device:
            return self.span(address, num_bytes)
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def _run(self, stream: int) -> None:
        works, self._streams[stream] = self._streams[stream], []
        for work in works:
            work()
