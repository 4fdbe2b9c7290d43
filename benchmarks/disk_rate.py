"""How fast this disk writes, reads and copies large files, without the page cache: what an export is held to.

A file is written and synced, its pages are dropped, it is read, dropped again, and copied. Only large sequential
transfers are measured. The kernel may refuse to drop pages that are mapped elsewhere; ours are not.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE = 8 * 2**20


@dataclass(frozen=True)
class DiskRate:
    """In bytes a second; a copy reads a cold file and writes and syncs another."""

    file_bytes: int
    write: float
    read: float
    copy: float


def disk_rate(directory: Path, file_bytes: int = 4 * 10**9) -> DiskRate:
    """Measures with two files of `file_bytes` in a new directory inside `directory`, and removes them."""
    with tempfile.TemporaryDirectory(prefix="disk-rate-", dir=directory) as inside:
        first, second = Path(inside) / "first", Path(inside) / "second"
        write = _seconds(lambda: _fill(first, file_bytes))
        drop_pages(first)
        read = _seconds(lambda: _read(first))
        drop_pages(first)
        copy = _seconds(lambda: _copy(first, second))
        return DiskRate(file_bytes, file_bytes / write, file_bytes / read, file_bytes / copy)


@contextmanager
def written_through(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk, and out of the page cache, when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def drop_pages(path: Path) -> None:
    """Drops a file's clean pages from the page cache; those of a directory's files, too."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _fill(path: Path, count: int) -> None:
    noise = os.urandom(PIECE)  # not zeros, which a virtual disk may not store
    with written_through(path) as file:
        for position in range(0, count, PIECE):
            file.write(noise[: min(PIECE, count - position)])


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(PIECE)
        while file.readinto(buffer):
            pass


def _copy(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as file, written_through(target) as copy:
        buffer = bytearray(PIECE)
        while count := file.readinto(buffer):
            copy.write(memoryview(buffer)[:count])
