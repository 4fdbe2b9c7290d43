"""ONNX external data, written tensor by tensor in one pass: hashed as it goes, checked as it goes, and continued.

One tensor is in memory at a time, and beside it a block. Where each tensor lies is known before the first is read.
With a journal a writer that was killed is continued: for each finished tensor the journal has a line, with the sha256
of the file from its beginning to that tensor's end. Who continues reads the file once; what those hashes do not
confirm is cut off and written again, so nothing is believed that a power cut or a flipped bit may have changed. That
same pass rebuilds the running hash, which at the end is the file's.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
from latentc.schema import FileRecord

from export.finite import FiniteCheck

BLOCK_BYTES = 4 << 20
# ONNX asks for offsets at pages (4 KiB) where a file is to be mapped. ONNX Runtime 1.31 and onnx 1.23 map any offset;
# but then pages are shared by two weights, and elements may lie across cache lines.
_ALIGNMENT, _PAGE = 64, 4096
_LARGE_BYTES = 1 << 20
_COLUMNS = 32

Advance = Callable[[int], object]


class Place(msgspec.Struct, frozen=True):
    """Where a tensor lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the journal: a tensor that is written, and the sha256 of the file up to its end."""

    place: Place
    sha256: str


def places_of(tensors: Iterable[tuple[str, ir.TensorProtocol]]) -> tuple[Place, ...]:
    """Named tensors one behind the other in the given order; large ones begin at a page, others at a cache line."""
    places: list[Place] = []
    end = 0
    for name, tensor in tensors:
        assert tensor.dtype.bitwidth >= 8, f"{name} is {tensor.dtype}, of which two elements share a byte"
        shape = tuple(tensor.shape.numpy())
        num_bytes = math.prod(shape) * tensor.dtype.bitwidth // 8
        alignment = _PAGE if num_bytes >= _LARGE_BYTES else _ALIGNMENT
        offset = -(-end // alignment) * alignment
        places.append(Place(name, tensor.dtype.name, shape, offset, num_bytes))
        end = places[-1].end
    return tuple(places)


class WeightsFile(contextlib.AbstractContextManager["WeightsFile"]):
    """A file of `places`, open for writing; with what its journal confirms, else empty."""

    def __init__(self, path: Path, places: tuple[Place, ...], journal: Path | None) -> None:
        self.places, self._graph = places, path.stem
        self._sha256 = hashlib.sha256()
        self._end = self._num_written = 0
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("r+b" if path.exists() else "w+b", buffering=0))
            self._journal = stack.enter_context(journal.open("a+b", buffering=0)) if journal is not None else None
            # Hashing releases the interpreter lock: one block is hashed while it is written and checked.
            self._hasher = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="sha256"))
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def num_bytes(self) -> int:
        """Of the whole file, when it is finished."""
        return self.places[-1].end if self.places else 0

    @property
    def kept_bytes(self) -> int:
        """How much is written."""
        return self._end

    @property
    def missing(self) -> tuple[Place, ...]:
        """What is not written yet, in order."""
        return self.places[self._num_written :]

    def journaled_bytes(self) -> int:
        """How much `recover` will read, if all of it is there."""
        lines = [line for line, _ in self._lines()]
        return min(lines[-1].place.end, os.fstat(self._file.fileno()).st_size) if lines else 0

    def recover(self, advance: Advance) -> None:
        """Keeps the longest beginning that the journal confirms, and cuts off the rest of both."""
        lines_end = 0
        for line, end in self._lines():
            sha256 = self._sha256.copy()
            if not self._hash_until(line.place.end, sha256, advance) or sha256.hexdigest() != line.sha256:
                break
            self._sha256, self._end, lines_end = sha256, line.place.end, end
            self._num_written += 1
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if self._journal is not None:
            self._journal.truncate(lines_end)

    def write(self, array: np.ndarray, advance: Advance) -> None:
        """Appends the first of `missing`: an array of its shape, contiguous or not. Raises SourceError for NaN, Inf."""
        place = self.places[self._num_written]
        dtype = ir.DataType[place.dtype]
        assert array.shape == place.shape, f"{place.name}: {array.shape} instead of {place.shape}"
        assert array.nbytes == place.num_bytes, f"{place.name}: {array.dtype} instead of {dtype}"
        check = FiniteCheck(dtype)
        self._append(np.zeros(place.offset - self._end, np.uint8), FiniteCheck(ir.DataType.UINT8), advance)
        for block in _blocks(array):
            self._append(block, check, advance)
        check.require(f"graph {self._graph}: {place.name}")
        self._num_written += 1
        if self._journal is not None:
            line = msgspec.json.encode(_Line(place, self._sha256.hexdigest())) + b"\n"
            _write_all(self._journal.fileno(), memoryview(line))

    def finished(self) -> FileRecord:
        """The record of the whole file, which was hashed as it was written."""
        assert not self.missing, f"{self.missing[0].name} is not written"
        return FileRecord(sha256=self._sha256.hexdigest(), num_bytes=self._end)

    def _append(self, block: np.ndarray, check: FiniteCheck, advance: Advance) -> None:
        data = block.view(np.uint8).data
        hashed = self._hasher.submit(self._sha256.update, data)
        try:
            _write_all(self._file.fileno(), data)
            check.feed(block)
        finally:
            hashed.result()
        self._end += len(data)
        advance(len(data))

    def _lines(self) -> Iterator[tuple[_Line, int]]:
        """The lines that agree with `places`, one for one from the first, and where in the journal each ends."""
        if self._journal is None:
            return
        self._journal.seek(0)
        end = 0
        for raw, place in zip(self._journal.read().splitlines(keepends=True), self.places, strict=False):
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except msgspec.DecodeError:  # cut off in the middle of a line
                return
            if line.place != place or not raw.endswith(b"\n"):
                return
            end += len(raw)
            yield line, end

    def _hash_until(self, end: int, sha256: "hashlib._Hash", advance: Advance) -> bool:
        """Feeds `sha256` with what the file holds from what is kept so far to `end`; False if it is shorter."""
        self._file.seek(self._end)
        buffer = memoryview(bytearray(min(BLOCK_BYTES, end - self._end)))
        left = end - self._end
        while left:
            num_read = self._file.readinto(buffer[:left])
            if not num_read:
                return False
            sha256.update(buffer[:num_read])
            advance(num_read)
            left -= num_read
        return True


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The elements in C order, each block contiguous in one dim, and valid until the next is asked for."""
    if array.flags.c_contiguous:
        elements = array.reshape(-1)
        step = BLOCK_BYTES // max(array.itemsize, 1)
        for start in range(0, elements.size, step):
            yield elements[start : start + step]
    else:
        yield from _copied_blocks(array, np.empty(BLOCK_BYTES, np.uint8))


def _copied_blocks(view: np.ndarray, room: np.ndarray) -> Iterator[np.ndarray]:
    """The blocks of an array that does not lie in order, each copied to the same place, whose pages are there."""
    row_bytes = view.nbytes // len(view)
    if row_bytes > BLOCK_BYTES:
        for part in view:
            yield from _copied_blocks(part, room)
        return
    num_rows = BLOCK_BYTES // row_bytes
    for start in range(0, len(view), num_rows):
        rows = view[start : start + num_rows]
        block = room[: rows.nbytes].view(view.dtype).reshape(rows.shape)
        # A few columns at a time: numpy 2.4 copies a transposed matrix row by row, a cache miss for each element.
        for column in range(0, rows.shape[-1], _COLUMNS):
            block[..., column : column + _COLUMNS] = rows[..., column : column + _COLUMNS]
        yield block.reshape(-1)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
