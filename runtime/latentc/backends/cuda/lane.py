"""A lane: one stream, its memory, and the loops that were recorded on it.

One request at a time runs in a lane; several lanes run side by side and share nothing but the weights. A loop that was
run once in a lane (the warm-up: TensorRT sets itself up for new shapes then) is recorded the second time as one CUDA
graph, and launched from then on. Its memory keeps its addresses as long as the recording lives; at most `MAX_LOOPS`
shapes are kept, the least recently used goes first.
"""

import contextlib
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import numpy as np

from latentc.backends.cuda.memory import Block, DeviceBuffer, Pool, device_buffer
from latentc.backends.cuda.runtime import Cuda
from latentc.backends.protocol import Buffer
from latentc.errors import BackendError

MAX_LOOPS = 4

Place: TypeAlias = tuple[str, tuple[int, ...], str, bool]  # name, shape, dtype, rows apart
LoopKey: TypeAlias = tuple[tuple[Place, ...], Hashable]  # what it reads and writes, and its kind


class Workspace:
    """Scratch memory that all engines of a lane share, since they run one after the other."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._block: Block | None = None

    @property
    def address(self) -> int:
        return 0 if self._block is None else self._block.address

    @property
    def num_bytes(self) -> int:
        return 0 if self._block is None else self._block.num_bytes

    def grow(self, num_bytes: int) -> None:
        """Replaces the memory by more; the old one is given back to the device first."""
        self._block = None
        self._pool.trim()
        self._block = self._pool.block(num_bytes)


class Lane:
    """One stream with its pool, workspace and recorded loops."""

    def __init__(self, cuda: Cuda, captures: bool = True) -> None:
        self.cuda = cuda
        self.pool = Pool(cuda)
        self.workspace = Workspace(self.pool)
        self.why_not: str | None = None if captures else "this backend does not record loops"
        self.current: DeviceLoopMemory | None = None
        self._places: dict[Place, DeviceBuffer] = {}
        self._loops: OrderedDict[LoopKey, Any] = OrderedDict()  # the recording; None: warmed up only
        weakref.finalize(self, _drop_all, cuda, self.stream, self._loops).atexit = False

    @property
    def stream(self) -> Any:
        return self.pool.stream

    @property
    def num_recorded(self) -> int:
        """Loops that are launched as one."""
        return sum(recording is not None for recording in self._loops.values())

    def require_workspace(self, num_bytes: int) -> None:
        """Makes the shared scratch memory at least this large."""
        if num_bytes > self.workspace.num_bytes:
            self.forget_recordings()  # they hold the old address
            self.workspace.grow(num_bytes)

    def never_record(self, why: str) -> None:
        """For engines that cannot be captured (weight streaming): loops are enqueued, step by step."""
        self.why_not = why
        self.forget_recordings()

    def forget_recordings(self) -> None:
        """Something that recordings point to is about to move: they are made again."""
        if self.num_recorded:
            self.pool.synchronise()
        for key, recording in self._loops.items():
            if recording is not None:
                self.cuda.drop_graph(recording)
                self._loops[key] = None
        self._loops.clear()  # the next run is a warm-up again

    def begin(self, memory: "DeviceLoopMemory") -> None:
        """A new request. Drops the oldest loops, and the places that no loop uses any more."""
        self.current = memory
        while len(self._loops) > MAX_LOOPS:
            _, recording = self._loops.popitem(last=False)
            if recording is not None:
                self.pool.synchronise()
                self.cuda.drop_graph(recording)
        used = {place for places, _ in self._loops for place in places}
        self._places = {place: buffer for place, buffer in self._places.items() if place in used}

    def place(self, place: Place) -> DeviceBuffer:
        """The buffer of a place; the same one each time."""
        found = self._places.get(place)
        if found is None:
            _, shape, dtype, rows_apart = place
            found = self._places[place] = device_buffer(self.pool, shape, np.dtype(dtype).type, rows_apart)
        return found

    def replay(self, key: LoopKey, work: Callable[[], None]) -> None:
        """Does `work`: enqueued the first time, recorded the second, launched from then on."""
        if self.why_not is not None or key not in self._loops:
            work()
            if self.why_not is None:
                self._loops[key] = None
            return
        self._loops.move_to_end(key)
        if self._loops[key] is None:
            recording = self._recorded(work)
            if recording is None:
                work()
                return
            self._loops[key] = recording
        self.cuda.launch(self._loops[key], self.stream)

    def _recorded(self, work: Callable[[], None]) -> Any:
        """The recording of `work`; None if it cannot be recorded, which is then said once and never tried again."""
        self.pool.synchronise()
        try:
            self.cuda.begin_capture(self.stream)
            try:
                work()
            except BaseException:
                self.cuda.abandon_capture(self.stream)
                raise
            return self.cuda.end_capture(self.stream)
        except BackendError as error:
            self.never_record(str(error))
            print(
                f"latentc: the loop is not recorded as a CUDA graph but enqueued step by step: {error}", file=sys.stderr
            )
            return None


def _drop_all(cuda: Cuda, stream: Any, loops: OrderedDict[LoopKey, Any]) -> None:
    """The recordings of a lane that nothing refers to any more."""
    with contextlib.suppress(BackendError):  # a device that has failed frees nothing
        cuda.synchronise(stream)
        for recording in loops.values():
            if recording is not None:
                cuda.drop_graph(recording)


class DeviceLoopMemory:
    """The memory of one request's loop, in the places of its lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._dealt: list[Place] = []
        lane.begin(self)

    def zeros(self, place: str, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceBuffer:
        buffer = self._deal((place, shape, np.dtype(dtype).str, False))
        buffer.clear()
        return buffer

    def settled(self, place: str, buffer: Buffer, rows: bool = False) -> DeviceBuffer:
        source = buffer if isinstance(buffer, DeviceBuffer) else None
        values = buffer.read() if source is None else None
        dtype = source.dtype.str if source is not None else np.asarray(values).dtype.str
        settled = self._deal((place, buffer.shape, dtype, rows))
        if values is not None:
            settled.write(values)
        else:
            settled.copy_from(buffer)
        return settled

    def replay(self, work: Callable[[], None], kind: Hashable = None) -> None:
        self._check()
        self._lane.replay((tuple(self._dealt), kind), work)

    def _deal(self, place: Place) -> DeviceBuffer:
        self._check()
        assert all(place[0] != dealt[0] for dealt in self._dealt), f"{place[0]} is dealt out twice"
        self._dealt.append(place)
        return self._lane.place(place)

    def _check(self) -> None:
        if self._lane.current is not self:
            raise BackendError("another request has begun in this lane; draw one after the other, or take more lanes")


class DeviceInstant:
    """A CUDA event in a lane's stream."""

    def __init__(self, lane: Lane) -> None:
        self._cuda = lane.cuda
        self.event = lane.cuda.event(lane.stream)

    def ms_since(self, earlier: object) -> float:
        if not isinstance(earlier, DeviceInstant):
            raise TypeError(f"{type(earlier).__name__} is no instant of a GPU")
        return self._cuda.elapsed_ms(earlier.event, self.event)

    def __del__(self) -> None:
        self._cuda.drop_event(self.event)
