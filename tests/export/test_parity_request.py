"""The request that an export is judged by."""

from types import SimpleNamespace
from typing import Any

import pytest

from export.parity_request import parity_skipped, parity_strength


@pytest.mark.parametrize(
    ("strength", "rounds_up", "steps", "expected"),
    [(0.3, False, 20, (0.3, 14)), (0.3, False, 2, (1.0, 0)), (0.8, False, 1, (1.0, 0)), (0.6, True, 4, (0.6, 1))],
)
def test_a_strength_that_is_no_step_of_a_short_table_is_all_of_it(
    strength: float, rounds_up: bool, steps: int, expected: tuple[float, int]
) -> None:
    """SDXL's 0.3 of 2 steps would be none: there is no such table, and the comparison draws over the whole image."""
    step: Any = SimpleNamespace(model=SimpleNamespace(default_strength=strength, strength_rounds_up=rounds_up))
    table: Any = SimpleNamespace(steps=steps)
    assert (parity_strength(step, table), parity_skipped(step, table)) == expected
