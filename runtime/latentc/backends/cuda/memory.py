"""Device memory: blocks from a pool that belongs to one stream, and tensors in them.

A block goes back to its pool when the last tensor in it is gone, and may be dealt out again at once: work that still
reads it was enqueued before the work that will write it, in the same stream. So nothing waits, and cudaMalloc, which
does, is called only for what was never needed before. All blocks begin at multiples of 256 bytes, which TensorRT
asks of every tensor.
"""

import contextlib
import math
import weakref
from typing import Any

import numpy as np

from latentc.backends.cuda.runtime import Cuda
from latentc.backends.protocol import Array, Buffer
from latentc.errors import BackendError

ALIGNMENT = 256


def aligned(num_bytes: int) -> int:
    """The next multiple of the alignment, and at least one."""
    return max(ALIGNMENT, -(-num_bytes // ALIGNMENT) * ALIGNMENT)


class Pool:
    """Free blocks by size, of one stream. `kept` holds host arrays until the copies that read them are done."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream: Any = cuda.stream()
        self.allocated_bytes = 0
        self._free: dict[int, list[int]] = {}
        weakref.finalize(
            self, _give_back, cuda, self.stream, self._free
        ).atexit = False  # the driver frees all by itself
        self._kept: list[Array] = []

    def block(self, num_bytes: int) -> "Block":
        """A block of at least `num_bytes`; its contents are whatever was there."""
        size = aligned(num_bytes)
        free = self._free.get(size)
        if free:
            return Block(self, free.pop(), size)
        address = self.cuda.allocate(size)
        self.allocated_bytes += size
        return Block(self, address, size)

    def keep(self, values: Array) -> None:
        """A copy from pageable memory may still read it after the call has returned, on machines with one memory."""
        self._kept.append(values)

    def synchronise(self) -> None:
        """Waits for the stream."""
        self.cuda.synchronise(self.stream)
        self._kept.clear()

    def trim(self) -> None:
        """Gives all free blocks back to the device; waits for it."""
        self.synchronise()
        for size, addresses in self._free.items():
            for address in addresses:
                self.cuda.free(address)
                self.allocated_bytes -= size
        self._free.clear()

    def _put_back(self, address: int, size: int) -> None:
        self._free.setdefault(size, []).append(address)


def _give_back(cuda: Cuda, stream: Any, free: dict[int, list[int]]) -> None:
    """What a pool held, when nothing refers to it any more: by then all of its blocks are free."""
    with contextlib.suppress(BackendError):  # a device that has failed frees nothing
        cuda.synchronise(stream)
        for addresses in free.values():
            for address in addresses:
                cuda.free(address)
        cuda.drop_stream(stream)


class Block:
    """Memory that goes back to its pool when nothing refers to it any more."""

    def __init__(self, pool: Pool, address: int, num_bytes: int) -> None:
        self.pool = pool
        self.address = address
        self.num_bytes = num_bytes
        weakref.finalize(self, pool._put_back, address, num_bytes).atexit = False


class DeviceBuffer:
    """A tensor in a block. `pitch` is the distance between rows in bytes, where they are further apart than packed."""

    def __init__(
        self, block: Block, address: int, shape: tuple[int, ...], dtype: type[np.generic], pitch: int | None = None
    ) -> None:
        self.block = block
        self.address = address
        self.dtype = np.dtype(dtype)
        self._shape = shape
        self._pitch = pitch

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def num_bytes(self) -> int:
        """Of the values, without what lies between padded rows."""
        return math.prod(self._shape) * self.dtype.itemsize

    @property
    def packed(self) -> bool:
        """Whether an engine can read the whole of it: no gaps between rows."""
        return self._pitch is None or self._shape[0] == 1

    def view(self, index: int) -> "DeviceBuffer":
        if not 0 <= index < self._shape[0]:
            raise IndexError(f"row {index} of {self._shape[0]}")
        return DeviceBuffer(self.block, self.address + index * self._row_pitch, self._shape[1:], self.dtype.type)

    def shaped(self, shape: tuple[int, ...]) -> "DeviceBuffer":
        if math.prod(shape) != math.prod(self._shape):
            raise ValueError(f"shape {list(shape)} does not hold as much as {list(self._shape)}")
        if self._pitch is not None and shape[:1] != self._shape[:1]:
            raise ValueError("padded rows stay rows")
        return DeviceBuffer(self.block, self.address, shape, self.dtype.type, self._pitch)

    def write(self, values: Array) -> None:
        if values.shape != self._shape:
            raise ValueError(f"expected shape {list(self._shape)}, got {list(values.shape)}")
        if values.dtype != self.dtype:
            raise TypeError(f"expected {self.dtype}, got {values.dtype}")
        pool = self.block.pool
        host = np.array(values, order="C", copy=True)  # ours: the caller may change his
        pool.keep(host)
        self._transfer(self.address, self._row_pitch, host.ctypes.data, self._row_bytes, "HostToDevice")

    def read(self) -> Array:
        host = np.empty(self._shape, self.dtype)
        self._transfer(host.ctypes.data, self._row_bytes, self.address, self._row_pitch, "DeviceToHost")
        self.block.pool.synchronise()
        return host

    def copy_from(self, source: Buffer) -> None:
        """The values of a buffer of the same shape: on the device, or through the host for another backend's."""
        if not isinstance(source, DeviceBuffer) or source.block.pool is not self.block.pool:
            self.write(source.read())
            return
        if source.shape != self._shape or source.dtype != self.dtype:
            raise ValueError(f"expected {self.dtype} {list(self._shape)}, got {source.dtype} {list(source.shape)}")
        self._transfer(self.address, self._row_pitch, source.address, source._row_pitch, "DeviceToDevice")

    def clear(self) -> None:
        """All zero, the gaps between rows as well."""
        if self.num_bytes:
            rows = self._shape[0] if self._pitch is not None else 1
            num_bytes = rows * self._pitch if self._pitch is not None else self.num_bytes
            self.block.pool.cuda.clear(self.address, num_bytes, self.block.pool.stream)

    @property
    def _row_bytes(self) -> int:
        return math.prod(self._shape[1:]) * self.dtype.itemsize

    @property
    def _row_pitch(self) -> int:
        return self._row_bytes if self._pitch is None else self._pitch

    def _transfer(self, target: int, target_pitch: int, source: int, source_pitch: int, kind: str) -> None:
        if not self.num_bytes:
            return
        pool = self.block.pool
        if target_pitch == source_pitch == self._row_bytes or not self._shape:
            pool.cuda.copy(target, source, self.num_bytes, kind, pool.stream)
            return
        width, rows = self._row_bytes, self._shape[0]
        pool.cuda.copy_rows(target, target_pitch, source, source_pitch, width, rows, kind, pool.stream)


def device_buffer(
    pool: Pool, shape: tuple[int, ...], dtype: type[np.generic], rows_apart: bool = False
) -> DeviceBuffer:
    """New memory, all zero; `rows_apart`: each row along the first axis is aligned as a tensor of its own."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    pitch = None
    if rows_apart and shape and shape[0]:
        pitch = aligned(num_bytes // shape[0])
        num_bytes = shape[0] * pitch
    block = pool.block(num_bytes)
    buffer = DeviceBuffer(block, block.address, shape, dtype, pitch)
    buffer.clear()
    return buffer
