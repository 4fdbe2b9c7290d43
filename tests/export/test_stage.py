"""A staged directory appears whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.stage import staged_directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_appears_with_all_its_files_and_leaves_nothing_beside(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "a" / "bundle") as stage:
        (stage / "graphs").mkdir()
        (stage / "graphs" / "x").write_text("1")
        assert not (tmp_path / "a" / "bundle").exists()
    assert (tmp_path / "a" / "bundle" / "graphs" / "x").read_text() == "1"
    assert names(tmp_path / "a") == ["bundle"]


def test_replaces_an_old_directory_entirely(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with staged_directory(tmp_path / "bundle") as stage:
            (stage / content).write_text(content)
    assert names(tmp_path / "bundle") == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_an_error_leaves_the_old_one_and_no_stage(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "bundle") as stage:
        (stage / "old").write_text("old")

    def write_half() -> None:
        with staged_directory(tmp_path / "bundle") as stage:
            (stage / "half").write_text("half")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_half()
    assert names(tmp_path / "bundle") == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".bundle.{dead.pid}.partial").mkdir()
    alive = tmp_path / f".bundle.{os.getppid()}.partial"
    alive.mkdir()
    with staged_directory(tmp_path / "bundle"):
        pass
    assert names(tmp_path) == [alive.name, "bundle"]


WRITER = """
import sys
from pathlib import Path
from export.stage import staged_directory
content = 0
while True:
    content += 1
    with staged_directory(Path(sys.argv[1])) as stage:
        for name in "abcdefgh":
            (stage / name).write_text(str(content))
    print(content, flush=True)
"""


def test_kill_at_any_moment_leaves_a_whole_directory(tmp_path: Path, python_path: dict[str, str]) -> None:
    """Twenty writers that replace the directory as fast as they can, each killed at another moment."""
    target = tmp_path / "bundle"
    for delay_ms in range(0, 100, 5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target)], env=python_path, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()  # the first one is in place: from here on the target must always be whole
        time.sleep(delay_ms / 1000)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        contents = {(target / name).read_text() for name in "abcdefgh"}
        assert len(contents) == 1, f"killed after {delay_ms} ms: a mixture of {contents}"
    with staged_directory(target) as stage:
        (stage / "last").touch()
    assert names(tmp_path) == ["bundle"]
