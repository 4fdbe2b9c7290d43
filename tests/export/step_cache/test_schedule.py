"""The rules of which calls are cached, on numbers alone."""

import numpy as np
import pytest

from export.step_cache.schedule import calls_below, most_cached, relative_change


def test_changes_add_up_until_a_full_step() -> None:
    changes = [np.inf, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert calls_below(changes, 0.05) == ()
    assert calls_below(changes, 0.15) == (1, 3, 5)
    assert calls_below(changes, 0.25) == (1, 2, 4, 5)
    assert calls_below(changes, 99.0) == (1, 2, 3, 4, 5)


def test_neither_the_first_nor_the_last_call_is_ever_cached() -> None:
    for calls in range(1, 8):
        cached = calls_below([0.0] * calls, 1.0)
        assert 0 not in cached
        assert calls - 1 not in cached
        assert len(cached) == max(0, calls - 2)


def test_a_large_change_makes_a_full_step_at_once() -> None:
    assert calls_below([np.inf, 0.1, 5.0, 0.1, 0.1], 0.2) == (1, 3)
    assert calls_below([np.inf, np.inf, np.nan, 0.1, 0.1], 0.2) == (3,), "what is no number caches nothing"


def test_the_relative_change_is_of_all_residuals_together() -> None:
    before = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([0.0], np.float32)}
    now = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([0.0], np.float32)}
    assert relative_change(now, before) == pytest.approx(4 / 5)
    assert relative_change(before, before) == 0.0
    assert relative_change({"a": np.zeros(2)}, {"a": np.ones(2)}) == np.inf


def test_of_the_lists_the_longest_that_holds() -> None:
    changes = [np.inf, *np.linspace(0.02, 0.4, 30)]
    asked: list[tuple[int, ...]] = []

    def quality(calls: tuple[int, ...]) -> float:
        asked.append(calls)
        return 60.0 - 2 * len(calls) if calls else 200.0

    calls, value = most_cached(changes, quality, 30.0)
    assert 10 <= len(calls) <= 15
    assert value == 60.0 - 2 * len(calls)
    assert len(asked) <= 8, "every question is a trajectory"
    longer = [other for other in asked if len(other) > 15]
    assert longer, "it has looked further"


def test_where_nothing_holds_nothing_is_cached() -> None:
    assert most_cached([np.inf] + [0.1] * 10, lambda calls: 200.0 if not calls else 10.0, 30.0) == ((), 200.0)
    assert most_cached([np.inf] + [0.1] * 10, lambda calls: np.nan if calls else 200.0, 30.0) == ((), 200.0)
