"""The rows of tile_memory are the command's own pictures, each drawn in a process of its own."""

from pathlib import Path

import pytest

from benchmarks.tile_memory import measured
from tests.runtime import toy, toy_variants


def test_a_row_is_one_picture(tmp_path: Path) -> None:
    bundle = toy_variants.free_sizes(toy_variants.make_text(toy.write_bundle(tmp_path / "toy")))
    row = measured(bundle, 32, 16, "low")
    assert (row["side"], row["tile"], row["memory"]) == (32, 16, "low")
    assert row["peak_bytes"] > 10**7, "an interpreter alone is larger"
    assert (tmp_path / "out.png").exists()
    with pytest.raises(SystemExit, match="tile 9, memory low: latentc: error: --tile 9 cannot be decoded"):
        measured(bundle, 32, 9, "low")
