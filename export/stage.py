"""A directory that appears whole or not at all, whatever kills the writer.

Written beside its place under a name of its own, flushed to disk, then put in place by one rename. An
old directory is exchanged in the same system call (Linux's renameat2 with RENAME_EXCHANGE), so that
no moment exists in which neither is there.
"""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory; on success it replaces `target`, on any error it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    stage = _stage_path(target, os.getpid())
    stage.mkdir()
    try:
        yield stage
        _flush(stage)
        _replace(stage, target)
        _flush_directory(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # what is left under this name: a failed stage, or the old one


def _stage_path(target: Path, pid: int) -> Path:
    return target.parent / f".{target.name}.{pid}.partial"


def _remove_abandoned(target: Path) -> None:
    """Removes what killed writers of the same target left; one that is still running keeps its own."""
    for path in target.parent.glob(f".{target.name}.*.partial"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def _replace(stage: Path, target: Path) -> None:
    if not target.exists():
        stage.rename(target)
        return
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc >= 2.28
    paths = (os.fsencode(stage), os.fsencode(target))
    if renameat2 and renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    # A file system without exchange: for a moment there is no bundle, and the old one lies beside.
    old = target.parent / f".{target.name}.{os.getpid()}.old"
    target.rename(old)
    stage.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
