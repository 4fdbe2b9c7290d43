"""A writer that was killed is continued: nothing is believed without its hash, and the result has equal bytes."""

import contextlib
import hashlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export.graph_files import write_graphs
from export.resume import load_result, store_result
from export.stage import open_stage
from export.weights_file import WeightsFile, places_of
from export.work_key import work_key
from tests.export.lazy_graphs import drawn, graph_of, lazy

SIZES = (300, 40_000, 900_000, 17, 270_000, 5_000, 64, 300_000, 1_100_000, 700)


class Interrupted(Exception):
    pass


def counted_graph(reads: list[str], fail_at: str | None = None) -> ir.Model:
    """A graph of SIZES whose tensors note when they are read; `fail_at` cannot be."""

    def tensor(index: int, size: int) -> ir.TensorProtocol:
        def array() -> np.ndarray:
            reads.append(f"w{index}")
            if f"w{index}" == fail_at:
                raise Interrupted
            return np.random.default_rng(index).standard_normal(size, np.float32)

        return lazy(array, (size,), ir.DataType.FLOAT)

    return graph_of({f"w{index}": tensor(index, size) for index, size in enumerate(SIZES)})


def file_of(directory: Path) -> Path:
    return directory / "graphs" / "sum.weights"


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    directory = tmp_path / "undisturbed"
    directory.mkdir()
    write_graphs(directory, {"sum": counted_graph([])})
    return file_of(directory).read_bytes()


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A directory whose writer stopped before w7, and its journal."""
    (tmp_path / "work").mkdir()
    directory = tmp_path / "bundle"
    directory.mkdir()
    with pytest.raises(Interrupted):
        write_graphs(directory, {"sum": counted_graph([], fail_at="w7")}, tmp_path / "work")
    return directory


def continued(directory: Path, undisturbed: bytes) -> list[str]:
    """Continues, and returns what was read again."""
    reads: list[str] = []
    written = write_graphs(directory, {"sum": counted_graph(reads)}, directory.parent / "work")["sum"]
    assert bytes(written.weights) == undisturbed
    assert written.records["graphs/sum.weights"].sha256 == hashlib.sha256(undisturbed).hexdigest()
    return reads


def all_from(index: int) -> list[str]:
    """What is read of the weights that lie in the file; w3 and w6 lie in the graph, which is written each time."""
    return [f"w{i}" for i in range(index, len(SIZES)) if SIZES[i] > 64] + ["w3", "w6"]


def test_what_is_whole_is_not_read_again(interrupted: Path, undisturbed: bytes) -> None:
    assert continued(interrupted, undisturbed) == all_from(7)
    assert continued(interrupted, undisturbed) == all_from(len(SIZES))


@pytest.mark.parametrize("tensor", [0, 2, 5])
def test_a_flipped_bit_is_found_and_written_again_with_all_behind_it(
    interrupted: Path, undisturbed: bytes, tensor: int
) -> None:
    places = places_of((f"w{i}", drawn(i, (size,))) for i, size in enumerate(SIZES) if size > 64)
    place = next(place for place in places if place.name == f"w{tensor}")
    with file_of(interrupted).open("r+b") as file:
        file.seek(place.end - 1)
        byte = file.read(1)[0]
        file.seek(place.end - 1)
        file.write(bytes([byte ^ 0x10]))
    assert continued(interrupted, undisturbed) == all_from(tensor)


def test_a_flipped_bit_in_the_padding_is_found_too(interrupted: Path, undisturbed: bytes) -> None:
    with file_of(interrupted).open("r+b") as file:
        file.seek(300 * 4 + 1)
        assert file.read(1) == b"\0"
        file.seek(300 * 4 + 1)
        file.write(b"\1")
    assert continued(interrupted, undisturbed) == all_from(1)


def test_a_shorter_file_than_the_journal_says(interrupted: Path, undisturbed: bytes) -> None:
    """What a power cut leaves: the journal reached the disk, and the weights did not."""
    with file_of(interrupted).open("r+b") as file:
        file.truncate(1_000_000)
    assert continued(interrupted, undisturbed) == all_from(2)
    file_of(interrupted).unlink()
    assert continued(interrupted, undisturbed) == all_from(0)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_journal_cut_off_within_a_line(interrupted: Path, undisturbed: bytes, cut: int) -> None:
    journal = interrupted.parent / "work" / "sum.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert continued(interrupted, undisturbed) == all_from(5)  # w6 has no line


def test_a_damaged_journal_and_a_missing_one(interrupted: Path, undisturbed: bytes) -> None:
    journal = interrupted.parent / "work" / "sum.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\xff\x00{]\n" + b"".join(lines[2:]))
    assert continued(interrupted, undisturbed) == all_from(1)
    journal.unlink()
    assert continued(interrupted, undisturbed) == all_from(0)


def test_other_tensors_than_those_of_the_journal_are_written_anew(interrupted: Path) -> None:
    other = graph_of({"w0": drawn(0, (300,)), "w1": drawn(1, (200, 200)), "w2": drawn(2, (900_000,))})
    written = write_graphs(interrupted, {"sum": other}, interrupted.parent / "work")["sum"]
    (interrupted.parent / "clean").mkdir()
    clean = write_graphs(interrupted.parent / "clean", {"sum": other})["sum"]
    assert written.records == clean.records


def test_files_of_no_graph_are_removed(interrupted: Path) -> None:
    (interrupted / "graphs" / "stranger.onnx").touch()
    write_graphs(interrupted, {"sum": counted_graph([])}, interrupted.parent / "work")
    assert sorted(p.name for p in (interrupted / "graphs").iterdir()) == ["sum.onnx", "sum.weights"]


def test_progress_counts_kept_bytes_once(interrupted: Path) -> None:
    """The bar of a run that continues begins at what is kept, and ends at the whole."""
    journal = interrupted.parent / "work" / "sum.journal"
    places = places_of((f"w{i}", drawn(i, (size,))) for i, size in enumerate(SIZES) if size > 64)
    counts: list[int] = []
    with WeightsFile(file_of(interrupted), places, journal) as file:
        expected = file.journaled_bytes()
        file.recover(counts.append)
        assert sum(counts) == file.kept_bytes == expected > 4_000_000
        counts.clear()
        kept = file.kept_bytes
        for place in file.missing:
            file.write(np.zeros(place.shape, np.float32), counts.append)
        assert sum(counts) + kept == file.num_bytes == file.kept_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_bytes_and_begins_at_what_is_kept(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About half of the file is kept: the bar of the weights never shows less, that of the check reads only that."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    write_graphs(interrupted, {"sum": counted_graph([])}, interrupted.parent / "work")
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    percents = [int(found) for found in re.findall(r"weights:\s+(\d+)%", shown)]
    assert percents[0] in range(40, 60), shown
    assert re.search(r"weights: .*\d\.\d+M/10\.\dM \[.*B/s\]", shown), shown
    assert re.search(r"check: .*/4\.\d+M \[", shown), shown


def test_results_are_whole_or_none(tmp_path: Path) -> None:
    store_result(tmp_path / "a" / "b", b"old")
    store_result(tmp_path / "a" / "b", memoryview(b"new"))
    assert load_result(tmp_path / "a" / "b") == b"new"
    assert load_result(tmp_path / "a" / "c") is None


def test_a_key_stands_for_source_options_code_and_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = work_key({"a": "0", "b": "1"}, "fp16")
    assert key == work_key({"b": "1", "a": "0"}, "fp16")
    keys = [key, work_key({"a": "0", "b": "2"}, "fp16"), work_key({"a": "0", "b": "1"}, "fp32")]
    monkeypatch.setattr("export.work_key._version", lambda package: "2.13.1" if package == "torch" else "1")
    keys.append(work_key({"a": "0", "b": "1"}, "fp16"))
    (tmp_path / "pass.py").write_text("x = 1")
    monkeypatch.setattr("export.work_key._ROOMS", (tmp_path,))
    keys.append(work_key({"a": "0", "b": "1"}, "fp16"))
    (tmp_path / "pass.py").write_text("x = 2")
    keys.append(work_key({"a": "0", "b": "1"}, "fp16"))
    assert len(set(keys)) == len(keys)


# Imports once, and forks a writer for each line: importing takes longer than writing. Each tensor takes 4 ms to make.
WRITERS = """
import os, sys, time
from pathlib import Path
import numpy as np
import onnx_ir as ir
from export.graph_files import write_graphs
from export.stage import open_stage
from tests.export.lazy_graphs import graph_of, lazy

def array(index):
    time.sleep(0.004)
    return np.random.default_rng(index).standard_normal((300, 200 + index), np.float32)

def graph(first):
    def tensor(i):
        return lazy(lambda: array(i), (300, 200 + i), ir.DataType.FLOAT)

    return graph_of({f"w{i}": tensor(i) for i in range(first, first + 12)})

def write(target):
    with open_stage(target, "key") as stage:
        if stage.recall("samples") is None:
            time.sleep(0.01)
            stage.remember("samples", b"x" * 100_000)
        write_graphs(stage.directory, {"first": graph(0), "second": graph(12)}, stage.work)
        (stage.directory / "manifest").write_text("last")
        stage.commit()

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            write(Path(line.strip()))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Writers:
    """Runs writers in processes of their own, one at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITERS], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, target: Path, kill_after_s: float | None = None) -> int:
        """The wait status of a writer of `target`, which is killed after so many seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{target}\n")
        self.process.stdin.flush()
        pid = int(self.line())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            # Its parent may have waited for it already: no other process has the number so soon.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return int(self.line())


@pytest.fixture
def writers(python_path: dict[str, str]) -> Iterator[Writers]:
    running = Writers(python_path)
    yield running
    assert running.process.stdin is not None
    running.process.stdin.close()
    running.process.wait(timeout=60)
    assert running.process.stdout is not None
    running.process.stdout.close()


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_kill_at_twenty_random_moments_then_again(tmp_path: Path, writers: Writers) -> None:
    start = time.perf_counter()
    assert writers.run(tmp_path / "undisturbed") == 0
    whole_s = time.perf_counter() - start
    expected = digests(tmp_path / "undisturbed")
    assert set(expected) == {"manifest", *(f"graphs/{n}.{s}" for n in ("first", "second") for s in ("onnx", "weights"))}
    moments = random.Random(5)
    killed_with_work = 0
    for index in range(20):
        target = tmp_path / f"bundle{index}"
        if index % 2:
            target.mkdir()
            (target / "old").touch()
        before = digests(target)
        status = writers.run(target, kill_after_s=moments.uniform(0, whole_s))
        assert digests(target) in (before, expected), "neither the old bundle nor the new one"
        stage = tmp_path / f".{target.name}.partial"
        killed_with_work += status != 0 and any(path.stat().st_size for path in stage.glob("work/*.journal"))
        assert writers.run(target) == 0
        assert digests(target) == expected
        assert not stage.exists()
    assert killed_with_work >= 3, "the moments do not lie within the writing"


def test_a_writer_in_another_process_is_refused_while_one_runs(tmp_path: Path, writers: Writers) -> None:
    with open_stage(tmp_path / "bundle", "key") as stage:
        assert writers.run(tmp_path / "bundle") != 0
        (stage.directory / "mine").touch()
        stage.commit()
    assert digests(tmp_path / "bundle").keys() == {"mine"}
