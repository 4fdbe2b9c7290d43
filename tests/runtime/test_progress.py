"""The bar is for terminals only; the stopwatch's stages add up."""

import io
import sys

import pytest
from latentc.progress import ProgressBar, Stopwatch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal_is_drawn_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = ProgressBar("denoise", 2)
    bar.update(1)
    assert "denoise [###############...............] 1/2" in screen.getvalue()
    bar.update(2)
    assert screen.getvalue().endswith("\r\033[K")
    assert "\n" not in screen.getvalue()


def test_no_bar_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    ProgressBar("denoise", 1).update(1)
    assert log.getvalue() == ""


def test_stopwatch_adds_up() -> None:
    watch = Stopwatch()
    watch.lap("a")
    watch.lap("b")
    timings = watch.timings_ms()
    assert list(timings) == ["a", "b", "total"]
    assert timings["total"] == pytest.approx(timings["a"] + timings["b"], abs=0.01)


def test_a_devices_time_is_put_right_and_still_adds_up() -> None:
    watch = Stopwatch()
    for name in ("denoise", "decode"):
        watch.lap(name)
    before = watch.laps_ms["denoise"] + watch.laps_ms["decode"]
    watch.correct("denoise", "decode", 5.0)
    assert watch.laps_ms["denoise"] == 5.0
    assert watch.laps_ms["decode"] == pytest.approx(before - 5.0, abs=0.01)
