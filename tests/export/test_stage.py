"""A staged directory appears whole or not at all, belongs to one writer, and is continued where that helps."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from latentc.errors import LatentcError, ParityError

from export import stage as stage_module
from export.stage import open_stage
from models.latent_diffusion import SourceError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """A writer that continues nothing, and commits."""
    with open_stage(target, uuid.uuid4().hex) as stage:
        yield stage.directory
        stage.commit()


def interrupt(target: Path, key: str, error: BaseException) -> None:
    """A writer that remembers one result and writes two files before `error` ends it."""
    with open_stage(target, key) as stage:
        stage.remember("samples", b"expensive")
        (stage.directory / "graphs").mkdir(exist_ok=True)
        (stage.directory / "graphs" / "half").write_text("half")
        (stage.directory / "table").write_text("half")
        raise error


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


def test_nothing_of_the_work_is_in_the_bundle_and_without_commit_there_is_none(tmp_path: Path) -> None:
    with open_stage(tmp_path / "bundle", "key") as stage:
        stage.remember("samples", b"1")
    assert names(tmp_path) == []
    with open_stage(tmp_path / "bundle", "key") as stage:
        assert stage.recall("samples") is None
        stage.remember("samples", b"1")
        (stage.directory / "file").touch()
        stage.commit()
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["file"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), SourceError("NaN"), ParityError("bound")])
def test_an_error_leaves_the_old_one_and_no_stage(tmp_path: Path, error: Exception) -> None:
    with staged_directory(tmp_path / "bundle") as stage:
        (stage / "old").write_text("old")
    with pytest.raises(type(error)):
        interrupt(tmp_path / "bundle", "key", error)
    assert names(tmp_path / "bundle") == ["old"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_an_interruption_is_continued(tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)):
        interrupt(tmp_path / "bundle", "key", error)
    assert "continue with the same command" in capsys.readouterr().err
    with open_stage(tmp_path / "bundle", "key") as stage:
        assert stage.recall("samples") == b"expensive"
        assert stage.recall("other") is None
        assert names(stage.directory) == ["graphs"], "only weights are worth keeping"
        assert names(stage.directory / "graphs") == ["half"]
        stage.commit()
    assert "continues what was interrupted" in capsys.readouterr().err
    assert names(tmp_path) == ["bundle"]


def test_another_key_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "bundle", "key", KeyboardInterrupt())
    capsys.readouterr()
    with open_stage(tmp_path / "bundle", "other") as stage:
        assert stage.recall("samples") is None
        assert names(stage.directory) == []
    assert "begins anew" in capsys.readouterr().err


def test_an_interruption_before_anything_was_done_leaves_nothing(tmp_path: Path) -> None:
    def open_and_stop() -> None:
        with open_stage(tmp_path / "bundle", "key"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_and_stop()
    assert names(tmp_path) == []


def test_a_damaged_result_is_not_recalled(tmp_path: Path) -> None:
    with open_stage(tmp_path / "bundle", "key") as stage:
        stage.remember("samples", b"expensive")
        stage.remember("empty", b"")
        assert stage.recall("empty") == b""
        (file,) = stage.work.rglob("samples")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert stage.recall("samples") is None
        file.write_bytes(b"")  # what a power cut leaves
        assert stage.recall("samples") is None


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with open_stage(tmp_path / "bundle", "key") as first:
        message = rf"bundle: another export writes it \(process {os.getpid()}\); wait for its end"
        with pytest.raises(LatentcError, match=message), open_stage(tmp_path / "bundle", "key"):
            pass
        with open_stage(tmp_path / "other", "key"):
            pass
        (first.directory / "file").touch()
        first.commit()
    assert names(tmp_path) == ["bundle"]


def test_a_file_system_that_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two renames; a kill between them leaves the old bundle in the stage, and the next writer puts it back."""
    monkeypatch.setattr(stage_module.ctypes, "CDLL", lambda *_, **__: object())
    for content in ("old", "new"):
        with staged_directory(tmp_path / "bundle") as stage:
            (stage / content).write_text(content)
    assert names(tmp_path / "bundle") == ["new"]
    assert names(tmp_path) == ["bundle"]
    (tmp_path / ".bundle.partial").mkdir()
    (tmp_path / "bundle").rename(tmp_path / ".bundle.partial" / "old")
    with open_stage(tmp_path / "bundle", "key"):
        assert names(tmp_path / "bundle") == ["new"]
    assert names(tmp_path) == ["bundle"]


WRITER = """
import sys
from pathlib import Path
from export.stage import open_stage
content = 0
while True:
    content += 1
    with open_stage(Path(sys.argv[1]), str(content)) as stage:
        for name in "abcdefgh":
            (stage.directory / name).write_text(str(content))
        stage.commit()
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
