"""Pages of mapped files: hashed in blocks, let go of, and read again."""

import hashlib
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from latentc import pages
from latentc.bundle import map_file
from latentc.pages import BLOCK_BYTES, release, sha256_of


@pytest.mark.parametrize("size", [0, 1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 4097])
def test_the_hash_is_that_of_the_whole(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(data)
    view = map_file(tmp_path, "file")
    assert sha256_of(view) == hashlib.sha256(data).hexdigest()
    assert sha256_of(view) == hashlib.sha256(data).hexdigest(), "it can be read again"


def resident_bytes(path: Path) -> int:
    """What Linux says is in memory of the mapping of `path` in this process."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.endswith(f" {path}"):
            return 1024 * int(next(below for below in lines if below.startswith("Rss:")).split()[1])
    raise AssertionError(f"{path} is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_is_released_is_not_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK_BYTES))
    view = map_file(tmp_path, "file")
    hashlib.sha256(view)
    assert resident_bytes(path) >= 3 * BLOCK_BYTES, "else this test sees nothing"
    release(view, BLOCK_BYTES, BLOCK_BYTES)
    assert resident_bytes(path) <= 2 * BLOCK_BYTES
    release(view)
    assert resident_bytes(path) == 0
    sha256_of(view)
    assert resident_bytes(path) <= BLOCK_BYTES


def test_what_cannot_be_released_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 8192)
    view = map_file(tmp_path, "file")
    for other in (memoryview(b""), memoryview(b"bytes"), view[4096:]):
        before = bytes(other)
        release(other)
        assert bytes(other) == before
    monkeypatch.setattr(pages, "mmap", type("NoAdvice", (), {"mmap": mmap.mmap}))  # as on a system without it
    release(view)
    assert bytes(view) == b"x" * 8192
