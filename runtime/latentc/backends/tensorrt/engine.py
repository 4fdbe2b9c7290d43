"""A plan in use: one engine, shared by all lanes, and in each lane one execution context for each set of shapes.

A context is set up for its shapes by its first run and never changes them, so that a recorded loop stays valid while
other shapes are drawn in between. Contexts own no scratch memory: they share their lane's workspace.

Two things that the loop binds may not suit TensorRT, and are put right by a copy that is enqueued (and recorded) with
the run: addresses that are no multiple of 256 bytes, and int64 inputs on 8.6, which knows int32 only. The copy of the
latter takes the low half of every number: a copy of 4-byte columns with a pitch of 8.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentc.backends.cuda.lane import Lane
from latentc.backends.cuda.memory import ALIGNMENT, DeviceBuffer, device_buffer
from latentc.backends.protocol import Buffer
from latentc.backends.tensorrt.library import Library
from latentc.backends.tensorrt.plan_record import PlanRecord
from latentc.errors import BackendError

MAX_CONTEXTS = 6  # as many sets of shapes of one graph in one lane

_DTYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A deserialised engine with the names, types and sides of its tensors."""

    name: str
    library: Library
    engine: Any
    record: PlanRecord | None
    inputs: dict[str, np.dtype[Any]]
    outputs: dict[str, np.dtype[Any]]


@dataclass
class _Context:
    """An execution context, and what it was last told."""

    context: Any
    addresses: dict[str, int] = field(default_factory=dict)
    workspace: tuple[int, int] = (0, 0)
    num_bytes: int = 0  # of workspace that these shapes need
    staged: dict[str, DeviceBuffer] = field(default_factory=dict)


def plan_of_engine(name: str, library: Library, engine: Any, record: PlanRecord | None) -> Plan:
    """Reads the tensors of an engine."""
    inputs: dict[str, np.dtype[Any]] = {}
    outputs: dict[str, np.dtype[Any]] = {}
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(tensor)
        dtype = next((_DTYPES[key] for key in _DTYPES if kind == getattr(library.module.DataType, key, None)), None)
        if dtype is None:
            raise BackendError(f"graph {name}: tensor {tensor} has type {kind}, which latentc does not bind")
        side = inputs if engine.get_tensor_mode(tensor) == library.module.TensorIOMode.INPUT else outputs
        side[tensor] = np.dtype(dtype)
    return Plan(name, library, engine, record, inputs, outputs)


class TensorRTEngine:
    """The bindings of a plan in one lane."""

    def __init__(self, plan: Plan, lane: Lane) -> None:
        self._plan: Plan | None = plan
        self._lane = lane
        self._bound: dict[str, DeviceBuffer] = {}
        self._contexts: OrderedDict[tuple[tuple[int, ...], ...], _Context] = OrderedDict()
        self._current: _Context | None = None
        if plan.record is not None and plan.record.weight_streaming is not None:
            lane.never_record("TensorRT cannot record engines that stream their weights")

    def bind(self, name: str, buffer: Buffer) -> None:
        if not isinstance(buffer, DeviceBuffer):
            raise TypeError(f"{type(buffer).__name__} is not a buffer of this backend")
        plan = self._opened()
        dtype = plan.inputs[name] if name in plan.inputs else plan.outputs.get(name)
        if dtype is None:
            names = ", ".join(sorted(plan.inputs.keys() | plan.outputs.keys()))
            raise BackendError(f"graph {plan.name} has no tensor {name}; it has {names}")
        if dtype != buffer.dtype and not _narrows(buffer.dtype, dtype, name in plan.inputs):
            raise BackendError(f"graph {plan.name}: tensor {name} is {dtype}, got {buffer.dtype}")
        if not buffer.packed:
            raise BackendError(f"graph {plan.name}: tensor {name} is given rows that lie apart")
        known = self._bound.get(name)
        if name in plan.inputs and (known is None or known.shape != buffer.shape):
            self._current = None  # other shapes, perhaps another context
        self._bound[name] = buffer

    def run(self) -> None:
        plan, lane = self._opened(), self._lane
        state = self._current or self._context_for_shapes()
        after = self._set_addresses(state)
        lane.require_workspace(state.num_bytes)
        workspace = (lane.workspace.address, lane.workspace.num_bytes)
        if state.num_bytes and state.workspace != workspace:
            _set_device_memory(state.context, *workspace)
            state.workspace = workspace
        if not state.context.execute_async_v3(int(lane.stream)):
            raise BackendError(f"graph {plan.name} cannot be run: {_why(plan.library)}")
        for staged, target in after:
            target.copy_from(staged)

    def close(self) -> None:
        self._lane.never_record("with little memory the engines of a loop are not there at once")
        self._lane.pool.synchronise()
        self._contexts.clear()
        self._current = None
        self._bound.clear()
        self._plan = None

    def in_lane(self, lane: Lane) -> "TensorRTEngine":
        """The same plan with bindings in another lane."""
        return TensorRTEngine(self._opened(), lane)

    def _opened(self) -> Plan:
        if self._plan is None:
            raise BackendError("the engine is closed: with little memory one request runs at a time")
        return self._plan

    def _context_for_shapes(self) -> _Context:
        plan = self._opened()
        missing = (plan.inputs.keys() | plan.outputs.keys()) - self._bound.keys()
        if missing:
            raise BackendError(f"graph {plan.name} has nothing bound to {', '.join(sorted(missing))}")
        shapes = tuple(self._bound[name].shape for name in plan.inputs)
        state = self._contexts.get(shapes)
        if state is None:
            if len(self._contexts) >= MAX_CONTEXTS:
                self._lane.forget_recordings()
                self._lane.pool.synchronise()
                self._contexts.popitem(last=False)
            state = _Context(_create_context(plan.library, plan.engine, self._lane))
            self._set_shapes(state)
            self._contexts[shapes] = state
        self._contexts.move_to_end(shapes)
        self._current = state
        return state

    def _set_shapes(self, state: _Context) -> None:
        plan = self._opened()
        plan.library.complaints()
        for name in plan.inputs:
            shape = self._bound[name].shape
            if not state.context.set_input_shape(name, shape):
                built = plan.record.profiles.get(name) if plan.record is not None else None
                bounds = "" if built is None else f"; it was built for {list(built[0])} to {list(built[2])}"
                raise BackendError(
                    f"the engine of graph {plan.name} does not take {list(shape)} as {name}{bounds}: "
                    "latentc build with another --batch or --size makes it"
                )
        for name in plan.outputs:
            made = tuple(state.context.get_tensor_shape(name))
            if made != self._bound[name].shape:
                raise BackendError(
                    f"graph {plan.name} makes {name} of shape {list(made)}, bound is {list(self._bound[name].shape)}"
                )
        state.num_bytes = _device_memory_bytes(plan.engine, state.context)

    def _set_addresses(self, state: _Context) -> list[tuple[DeviceBuffer, DeviceBuffer]]:
        """Tells the context what moved; returns the copies that must follow the run."""
        plan, pool = self._opened(), self._lane.pool
        after: list[tuple[DeviceBuffer, DeviceBuffer]] = []
        for name, buffer in self._bound.items():
            is_input = name in plan.inputs
            dtype = plan.inputs[name] if is_input else plan.outputs[name]
            address = buffer.address
            if dtype != buffer.dtype or address % ALIGNMENT:
                staged = state.staged.get(name)
                if staged is None or staged.shape != buffer.shape:
                    staged = state.staged[name] = device_buffer(pool, buffer.shape, dtype.type)
                address = staged.address
                if not is_input:
                    after.append((staged, buffer))
                elif dtype != buffer.dtype:
                    count = staged.num_bytes // dtype.itemsize
                    pool.cuda.copy_rows(
                        address, 4, buffer.address, 8, 4, count, "DeviceToDevice", pool.stream
                    )  # the low halves
                else:
                    staged.copy_from(buffer)
            if state.addresses.get(name) != address:
                if not state.context.set_tensor_address(name, address):
                    raise BackendError(f"graph {plan.name}: {name} cannot be bound: {_why(plan.library)}")
                state.addresses[name] = address
        return after


def _narrows(given: np.dtype[Any], wanted: np.dtype[Any], is_input: bool) -> bool:
    """TensorRT 8.6 has no int64: the parser makes such inputs int32."""
    return is_input and given == np.int64 and wanted == np.int32


def _create_context(library: Library, engine: Any, lane: Lane) -> Any:
    """A context without scratch memory of its own."""
    library.complaints()
    if library.has("ExecutionContextAllocationStrategy", "USER_MANAGED"):
        context = engine.create_execution_context(library.member("ExecutionContextAllocationStrategy", "USER_MANAGED"))
    else:  # 8.6
        context = engine.create_execution_context_without_device_memory()
    if context is None:
        raise BackendError(f"TensorRT makes no execution context: {_why(library)}")
    # The first context of an engine takes profile 0 by itself; on 8.6 the others have none (-1).
    if context.active_optimization_profile != 0:
        if not context.set_optimization_profile_async(0, int(lane.stream)):
            raise BackendError(f"TensorRT does not let contexts share a profile: {_why(library)}")
        lane.pool.synchronise()
    return context


def _device_memory_bytes(engine: Any, context: Any) -> int:
    """Scratch memory for the shapes that were set, or for the largest ones where TensorRT (8.6) cannot say."""
    if hasattr(context, "update_device_memory_size_for_shapes"):
        return int(context.update_device_memory_size_for_shapes())
    return int(engine.device_memory_size)


def _set_device_memory(context: Any, address: int, num_bytes: int) -> None:
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, num_bytes)
    else:  # 8.6
        context.device_memory = address


def _why(library: Library) -> str:
    return "; ".join(library.complaints()) or "TensorRT gives no reason"
