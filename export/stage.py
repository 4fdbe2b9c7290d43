"""A directory that appears whole or not at all, whatever kills the writer, and that a later writer can continue.

Beside the target lies `.NAME.partial/` while it is written:

    lock       held (flock) by the one process that writes
    key        of what is being made; under another key nothing that lies here is used
    work/      journals of half-written files, and results that were remembered
    bundle/    what becomes the target: flushed to disk, then put in place by one rename
    old/       the directory that was replaced, on a file system that cannot exchange two

An old directory is exchanged in the same system call (Linux's renameat2 with RENAME_EXCHANGE), so that no moment exists
in which neither is there. Nothing here is trusted because it is there: who continues checks a hash first.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from latentc.errors import LatentcError

from export.resume import load_result, store_result

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RESULT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

# What the same command may get over: a full disk, too little memory, Ctrl-C. Anything else would fail again.
_INTERRUPTIONS = (KeyboardInterrupt, SystemExit, OSError, MemoryError)


class Stage:
    """What is being written for one target; made by `open_stage`, which holds its lock."""

    def __init__(self, target: Path, root: Path) -> None:
        self.directory = root / "bundle"  # what becomes the target; nothing else lies in it
        self.work = root / "work"  # journals and remembered results; never part of the bundle
        self.committed = False
        self._target, self._root, self._results = target, root, root / "work" / "results"

    def recall(self, name: str) -> bytes | None:
        """What `remember` stored under `name`, in this run or in the one that it continues; None if nothing whole."""
        return load_result(self._results / name)

    def remember(self, name: str, data: bytes | memoryview) -> None:
        """Keeps `data` for a run that continues this one. `name`: letters, digits, `_`, `.` and `-`."""
        assert _RESULT_NAME.fullmatch(name), name
        store_result(self._results / name, data)

    def commit(self) -> None:
        """Flushes all files to disk, and puts the directory in the target's place; the last thing to call."""
        _flush(self.directory)
        (self._root / "key").unlink()  # from here on bundle/ may be the old one
        _replace(self.directory, self._target, self._root / "old")
        _flush_directory(self._target.parent)
        self.committed = True

    def begin(self, key: str) -> None:
        """Keeps what an interrupted writer of the same key left, or empties the stage, and says which on stderr."""
        old, key_file = self._root / "old", self._root / "key"
        if old.exists() and not self._target.exists():  # killed between the two renames of `_replace`
            old.rename(self._target)
        found = key_file.read_bytes() if key_file.is_file() else b""
        if found == key.encode() and self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name != "graphs":  # all but weights is quickly made again
                    _remove(path)
            if self.kept_bytes():
                print(f"export: continues what was interrupted ({self._root})", file=sys.stderr)
            return
        if found:
            print(f"export: {self._root} is of another source, other options or versions: begins anew", file=sys.stderr)
        for path in (key_file, old, self.directory, self.work):
            _remove(path)
        self._results.mkdir(parents=True)
        self.directory.mkdir()
        partial = self._root / "key.partial"
        partial.write_text(key, encoding="ascii")
        partial.rename(key_file)

    def kept_bytes(self) -> int:
        """The size of what a run that continues this one may find; 0 where there is no use in continuing."""
        if not any(path.stat().st_size for path in self.work.rglob("*") if path.is_file()):
            return 0
        return sum(path.stat().st_size for path in self._root.rglob("*") if path.is_file())

    def remove(self) -> None:
        """Removes all, the lock last."""
        with contextlib.suppress(OSError):  # not empty: another writer came as the lock went; or it is gone already
            for path in sorted(self._root.iterdir(), key=lambda path: path.name == "lock"):
                _remove(path)
            self._root.rmdir()


def stage_bytes(target: Path) -> int:
    """The size of what an interrupted writer of `target` left: the next one uses it or frees it."""
    root = target.parent / f".{target.name}.partial"
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@contextlib.contextmanager
def open_stage(target: Path, key: str) -> Iterator[Stage]:
    """The stage of `target`, locked; with what an interrupted writer of the same `key` left, else empty.

    Raises LatentcError, in one line, while another process writes the same target. Left without `commit`, the stage is
    kept for the next run after KeyboardInterrupt, SystemExit, OSError and MemoryError, and removed after anything else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    root = target.parent / f".{target.name}.partial"
    lock = _lock(root, target)
    stage = Stage(target, root)
    try:
        stage.begin(key)
        yield stage
    except _INTERRUPTIONS:
        num_bytes = 0 if stage.committed else stage.kept_bytes()
        if num_bytes:
            kept = f"{num_bytes / 1e6:.1f} MB are kept in {root}"
            print(f"export: interrupted; {kept}: continue with the same command", file=sys.stderr)
        else:
            stage.remove()
        raise
    except BaseException:
        stage.remove()
        raise
    else:
        stage.remove()
    finally:
        os.close(lock)


def _lock(root: Path, target: Path) -> int:
    """A descriptor that holds the lock of `root`, which is made where it is missing."""
    while True:
        root.mkdir(exist_ok=True)
        try:
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # another writer has just removed its stage
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            process = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise
            raise LatentcError(
                f"{target}: another export writes it (process {process or 'unknown'}); wait for its end, or give "
                "--output another path"
            ) from None
        if _is_file_at(lock, root / "lock"):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            return lock
        os.close(lock)  # the lock of a stage that was removed meanwhile


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _replace(stage: Path, target: Path, old: Path) -> None:
    if not target.exists():
        stage.rename(target)
        return
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc >= 2.28
    paths = (os.fsencode(stage), os.fsencode(target))
    if renameat2 and renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    # A file system without exchange: for a moment there is no bundle. `Stage.begin` puts the old one back.
    target.rename(old)
    stage.rename(target)


def _flush(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            _flush_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
