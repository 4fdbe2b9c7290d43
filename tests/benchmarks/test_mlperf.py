"""The adapter to LoadGen without LoadGen, and LoadGen itself where it is installed."""

import ctypes
import importlib.util
import json
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latentc.cli import main as latentc
from latentc.errors import RequestError
from latentc.request import Asked, resolve
from latentc.session import Session, open_session
from PIL import Image

from benchmarks import mlperf, mlperf_sut
from benchmarks.mlperf_sut import Item, Sut, library, pictures_of
from tests.runtime import toy


@dataclass
class Query:
    id: int
    index: int


@dataclass
class FakeLoadGen:
    """What Sut needs of mlperf_loadgen: it reads the memory that it is given at once, as LoadGen does."""

    answers: dict[int, bytes] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)

    def QuerySampleResponse(self, id: int, data: int, size: int) -> tuple[int, int, int]:
        return id, data, size

    def QuerySamplesComplete(self, responses: list[tuple[int, int, int]]) -> None:
        self.calls.append(len(responses))
        self.answers |= {id: ctypes.string_at(data, size) if size else b"" for id, data, size in responses}


@pytest.fixture(scope="module")
def session(pristine: Path) -> Session:
    return open_session(pristine, "onnxruntime", threads=1)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_bundle(tmp_path_factory.mktemp("mlperf") / "toy")


def test_a_sample_is_the_picture_of_the_command(session: Session, pristine: Path, tmp_path: Path) -> None:
    items = library(session.bundle.manifest, 5)
    assert items[1] == Item("dog", 1_001)
    together = pictures_of(session, items)
    for number, item in enumerate(items):
        assert (
            latentc(["sample", str(pristine), "--label", item.what, "-s", str(item.seed), "-o", f"{tmp_path}/a.png"])
            == 0
        )
        with Image.open(tmp_path / "a.png") as image:
            expected = np.asarray(image)
        np.testing.assert_array_equal(pictures_of(session, [item])[0], expected)
        np.testing.assert_array_equal(together[number], expected)
    assert len({picture.tobytes() for picture in together}) == 5


def test_a_solver_that_draws_noise_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    request = resolve(session.bundle.manifest, Asked(label="dog", solver="sde", steps=3))
    monkeypatch.setattr(mlperf_sut, "_request", lambda manifest, items: request)
    with pytest.raises(RequestError, match="solver sde draws noise for a whole batch"):
        pictures_of(session, [Item("dog", 1)])


def gated(most: int) -> tuple[FakeLoadGen, Sut, threading.Event]:
    """A system that draws when it is let to, so that queries gather; a picture is its place in the library."""
    gate, loadgen = threading.Event(), FakeLoadGen()

    def draw(places: Any) -> np.ndarray:
        assert gate.wait(10)
        return np.stack([np.full((2, 2, 3), place, np.uint8) for place in places])

    return loadgen, Sut(loadgen, draw, most), gate


def test_what_waits_is_drawn_together_and_answered_by_its_own_id() -> None:
    loadgen, system, gate = gated(most=4)
    system.issue([Query(100 + place, place) for place in range(10)])
    gate.set()
    system.flush()
    system.close()
    assert loadgen.answers == {100 + place: bytes([place]) * 12 for place in range(10)}
    assert system.batches == [4, 4, 2]


def test_one_at_a_time_where_that_is_asked() -> None:
    loadgen, system, gate = gated(most=1)
    system.issue([Query(place, place) for place in range(3)])
    gate.set()
    system.close()
    assert (system.batches, loadgen.calls) == ([1, 1, 1], [1, 1, 1])


def test_a_draw_that_fails_ends_the_run_with_its_reason() -> None:
    loadgen = FakeLoadGen()

    def draw(places: Any) -> np.ndarray:
        raise RequestError("no picture")

    system = Sut(loadgen, draw, 2)
    system.issue([Query(place, place) for place in range(5)])
    with pytest.raises(RequestError, match="no picture"):
        system.close()
    assert loadgen.answers == dict.fromkeys(range(5), b"")  # every query is answered: LoadGen waits for all


def accuracy_log(path: Path, pictures: list[np.ndarray]) -> Path:
    entries = [{"qsl_idx": place, "data": picture.tobytes().hex()} for place, picture in enumerate(pictures)]
    path.write_text(json.dumps(entries))
    return path


def test_differences_are_seen(tmp_path: Path) -> None:
    expected = [np.full((2, 2, 3), 9, np.uint8), np.zeros((2, 2, 3), np.uint8)]
    same = mlperf.differences(accuracy_log(tmp_path / "a", expected), expected)
    assert same == {"samples": 2, "equal": 2, "largest_difference": 0}
    other = mlperf.differences(accuracy_log(tmp_path / "b", [expected[0], expected[1] + 7]), expected)
    assert other == {"samples": 2, "equal": 1, "largest_difference": 7}
    with pytest.raises(SystemExit, match="logged 1 of 2 samples"):
        mlperf.differences(accuracy_log(tmp_path / "c", expected[:1]), expected)
    with pytest.raises(SystemExit, match="sample 0 has 6 bytes, its picture 12"):
        mlperf.differences(accuracy_log(tmp_path / "d", [expected[0][:1], expected[1]]), expected)


def test_figures_are_read_from_the_summary() -> None:
    text = "Scenario : SingleStream\n90.0th percentile latency (ns) : 123\nResult is : VALID\n  Min duration : Yes\n"
    assert mlperf.summary(text) == {"90.0th percentile latency (ns)": "123", "Result is": "VALID"}


def test_without_loadgen_there_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert mlperf.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "benchmarks.mlperf: LoadGen is not installed here; make bench-mlperf does it\n"


@pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="LoadGen is not installed (make bench-mlperf)"
)
@pytest.mark.parametrize("scenario", mlperf.SCENARIOS)
def test_loadgen_runs_each_scenario(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str
) -> None:
    short = mlperf.CONFIG.read_text().replace("min_duration = 20000", "min_duration = 200")
    short = short.replace("target_qps = 3", "target_qps = 100")
    (tmp_path / "short.conf").write_text(short)
    monkeypatch.setattr(mlperf, "CONFIG", tmp_path / "short.conf")
    monkeypatch.setattr(mlperf, "RESULTS", tmp_path / "results" / "mlperf.json")
    assert mlperf.main([str(pristine), "--scenario", scenario, "--samples", "6", "--threads", "1"]) == 0
    row = json.loads((tmp_path / "results" / "mlperf.json").read_text())["scenarios"][scenario]
    assert row["Result is"] in ("VALID", "INVALID")  # a loaded machine may be too late; the pictures may not be wrong
    assert any(name.endswith(("latency (ns)", "per second")) for name in row)
    assert row["accuracy"] == {"samples": 6, "equal": 6, "largest_difference": 0}
    assert (tmp_path / "results" / "mlperf" / scenario / mlperf.SUMMARY).stat().st_size > 0
