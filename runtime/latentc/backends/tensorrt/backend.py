"""TensorRT as a backend: it builds plans, keeps records of them, and loads what fits this machine."""

import copy
import platform
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from latentc.backends.cuda.lane import DeviceInstant, DeviceLoopMemory, Lane
from latentc.backends.cuda.memory import DeviceBuffer, device_buffer
from latentc.backends.cuda.runtime import Cuda
from latentc.backends.options import AUTOMATIC, EngineOptions
from latentc.backends.protocol import Engine
from latentc.backends.tensorrt.build import plan_of
from latentc.backends.tensorrt.engine import TensorRTEngine, plan_of_engine
from latentc.backends.tensorrt.library import Library
from latentc.backends.tensorrt.plan_record import PlanRecord, record_from_bytes, refusal_of
from latentc.backends.tensorrt.profiles import profiles_of
from latentc.backends.tensorrt.refit import refit
from latentc.bundle import GraphBytes
from latentc.errors import BackendError
from latentc.pages import release
from latentc.schema import Manifest


class TensorRTBackend:
    """One lane of TensorRT on the first GPU; `lane()` makes more, which share the runtime and the weights."""

    def __init__(self, library: Library, cuda: Cuda, options: EngineOptions) -> None:
        self._library, self._cuda, self._options = library, cuda, options
        self._device = cuda.device()
        self._runtime = library.make("Runtime", library.log)
        # A plan may bring host code; what a user hands in is never allowed to.
        self._runtime.engine_host_code_allowed = False
        self.stream_lane = Lane(cuda)

    @property
    def name(self) -> str:
        lean = "" if self._library.can_build else "_lean"
        return f"tensorrt{lean} {self._library.version}"

    @property
    def target(self) -> str:
        return f"tensorrt-{self._library.version}-{self._device.sm}"

    @property
    def targets(self) -> str:
        return "tensorrt-*"

    @property
    def needs_engines(self) -> bool:
        return True

    def engine_key(self) -> dict[str, str]:
        return {
            "tensorrt": self._library.version,
            "gpu": self._device.name,
            "compute_capability": self._device.compute_capability,
            "machine": platform.machine(),
        }

    def build_options(self) -> dict[str, str]:
        return self._options.record()

    def refusal(self, key: Mapping[str, str], options: Mapping[str, str]) -> str | None:
        return refusal_of(key, self.engine_key(), options, lean=not self._library.can_build)

    def buffer(self, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceBuffer:
        return device_buffer(self.stream_lane.pool, shape, dtype)

    def loop_memory(self) -> DeviceLoopMemory:
        return DeviceLoopMemory(self.stream_lane)

    def lane(self) -> "TensorRTBackend":
        other = copy.copy(self)
        other.stream_lane = Lane(self._cuda)
        return other

    def adopted(self, engine: Engine) -> Engine:
        if not isinstance(engine, TensorRTEngine):
            raise TypeError(f"{type(engine).__name__} is no engine of this backend")
        return engine.in_lane(self.stream_lane)

    def now(self) -> DeviceInstant:
        return DeviceInstant(self.stream_lane)

    def memory_bytes(self) -> int:
        free, total = self._cuda.free_and_total_bytes()
        return total - free

    def load_graph(self, graph: GraphBytes, *, optimise: bool = True, mapped: bool = False) -> Engine:
        """An engine of a graph without symbolic dims, built on the spot; its weights are always copies."""
        if not optimise:
            raise BackendError("TensorRT always optimises; graphs are run as they are written by --backend onnxruntime")
        plan = plan_of(self._library, graph, {}, self._options, None)
        return self._engine(graph.name, plan, None, graph)

    def build_engine(self, graph: GraphBytes, directory: Path, manifest: Manifest) -> list[str]:
        profiles = profiles_of(manifest, graph.name, self._options)
        timings = (directory.parent, self.target)
        plan = plan_of(self._library, graph, profiles, self._options, timings)
        record = PlanRecord(
            stripped=self._options.strip_weights,
            weight_streaming=self._options.weight_streaming,
            profiles={name: (shapes.least, shapes.best, shapes.most) for name, shapes in profiles.items()},
        )
        (directory / f"{graph.name}.plan").write_bytes(plan)
        (directory / f"{graph.name}.json").write_bytes(msgspec.json.encode(record))
        return [f"{graph.name}.plan", f"{graph.name}.json"]

    def load_engine(self, name: str, files: dict[str, memoryview], graph: GraphBytes) -> Engine:
        record = record_from_bytes(files[f"{name}.json"], name)
        return self._engine(name, files[f"{name}.plan"], record, graph)

    def _engine(self, name: str, plan: memoryview, record: PlanRecord | None, graph: GraphBytes) -> Engine:
        library = self._library
        library.complaints()
        # Not `bytes(plan)`: the plan of a large model is as large as its weights, and is mapped.
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = "; ".join(library.complaints()) or "it gives no reason"
            raise BackendError(
                f"TensorRT does not load the engine of graph {name}: {reason}; latentc build --force makes it again"
            )
        release(plan)  # it is in TensorRT's memory now
        if record is not None and record.stripped:
            refit(library, engine, graph)
            release(graph.weights)
        if record is not None and record.weight_streaming is not None:
            budget = record.weight_streaming
            if budget == AUTOMATIC:
                budget = int(engine.get_weight_streaming_automatic_budget())
            # More than there is to stream is an error of TensorRT's.
            engine.weight_streaming_budget_v2 = min(budget, int(engine.streamable_weights_size))
        return TensorRTEngine(plan_of_engine(name, library, engine, record), self.stream_lane)
