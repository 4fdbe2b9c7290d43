"""Tables: read exactly, and refused when they are not causal, not finite or not of their shape."""

from pathlib import Path

import numpy as np
import pytest
from latentc.bundle import open_bundle
from latentc.errors import BundleError
from latentc.table import SolverTable, table_from_bundle
from safetensors.numpy import save_file

from tests.runtime import toy


def reread(bundle: Path, **changes: toy.Floats) -> SolverTable:
    """The toy's 4-step table with some of its tensors replaced and the bundle hashed again."""
    table = toy.table_of("plain", 4)
    arrays = {"input_rows": table.input_rows, "output_row": table.output_row, "timesteps": table.timesteps}
    save_file({**arrays, **changes}, bundle / "tables/plain-4.safetensors")
    toy.seal(bundle, toy.read_manifest(bundle))
    opened = open_bundle(bundle)
    return table_from_bundle(opened, next(t for t in opened.manifest.tables if (t.solver, t.steps) == ("plain", 4)))


def test_reads_what_was_written(bundle: Path) -> None:
    read, expected = reread(bundle), toy.table_of("plain", 4)
    np.testing.assert_array_equal(read.input_rows, expected.input_rows)
    np.testing.assert_array_equal(read.output_row, expected.output_row)
    np.testing.assert_array_equal(read.timesteps, expected.timesteps)
    assert (read.calls, read.slots, read.noise_draws) == (4, 5, 0)


@pytest.mark.parametrize("column", [2, 4])
def test_a_call_cannot_use_an_output_that_is_not_yet_made(bundle: Path, column: int) -> None:
    rows = toy.table_of("plain", 4).input_rows.copy()
    rows[1, column] = 0.5  # call 1 may use slots 0 and 1
    with pytest.raises(BundleError, match="call 1 uses an output that no call before it has made"):
        reread(bundle, input_rows=rows)


def test_numbers_must_be_finite_and_of_the_stated_shape(bundle: Path) -> None:
    with pytest.raises(BundleError, match="output_row holds a NaN"):
        reread(bundle, output_row=np.array([1, np.nan, 0, 0, 0], np.float32))
    with pytest.raises(BundleError, match=r"timesteps is float32 \[3\], expected float32 \[4\]"):
        reread(bundle, timesteps=np.zeros(3, np.float32))
