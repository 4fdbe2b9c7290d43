"""Tables: read exactly, and refused when they are not causal, not finite or not of their shape."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from latentc.bundle import open_bundle
from latentc.errors import BundleError
from latentc.table import SolverTable, table_from_bundle
from safetensors.numpy import load_file, save_file

from tests.runtime import toy, toy_variants


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


def reread_over_image(root: Path, skipped: int, **changes: np.ndarray) -> None:
    """Replaces tensors of the table for an initial image, hashes the bundle again, and reads that table."""
    manifest = toy.read_manifest(root)
    table = next(table for table in manifest.tables if table.solver == "sde")
    arrays = load_file(root / table.file)
    arrays.update({f"img2img/{skipped}/{name}": values for name, values in changes.items()})
    save_file(arrays, root / table.file)
    toy.seal(root, manifest)
    table_from_bundle(open_bundle(root), table, skipped)


NO_TABLE = "has no table for an image that stands for {} steps"


@pytest.mark.parametrize(
    ("skipped", "changes", "line"),
    [
        (3, {}, NO_TABLE.format(3)),
        (0, {}, NO_TABLE.format(0)),
        (1, {"counts": np.array([2, 2], np.int32)}, NO_TABLE.format(1)),
        (1, {"counts": np.array([2, 2, 2], np.int64)}, NO_TABLE.format(1)),
        (1, {"counts": np.array([0, 2], np.int64)}, "img2img/1/counts are out of range"),
        (1, {"counts": np.array([4, 2], np.int64)}, "img2img/1/counts are out of range"),
        (1, {"counts": np.array([2, -1], np.int64)}, "img2img/1/counts are out of range"),
        (1, {"counts": np.array([2, 4], np.int64)}, "img2img/1/counts are out of range"),
        (1, {"counts": np.array([2**62, 2], np.int64)}, "img2img/1/counts are out of range"),
        (1, {"counts": np.array([1, 2], np.int64)}, r"img2img/1/input_rows is float32 \[2, 6\], expected"),
        (1, {"output_row": np.zeros(5, np.float32)}, r"img2img/1/output_row is float32 \[5\], expected float32 \[6\]"),
        (1, {"input_rows": np.ones((2, 6), np.float32)}, "call 0 uses an output that no call before it has made"),
    ],
)
def test_a_wrong_table_for_an_image_is_one_line(
    over_image: Path, tmp_path: Path, skipped: int, changes: dict[str, np.ndarray], line: str
) -> None:
    root = Path(shutil.copytree(over_image, tmp_path / "toy"))
    with pytest.raises(BundleError, match=line) as refused:
        reread_over_image(root, skipped, **changes)
    assert "\n" not in str(refused.value)
    assert "sde-3.safetensors" in str(refused.value)


def test_the_table_for_an_image_is_read_exactly(over_image: Path) -> None:
    bundle = open_bundle(over_image)
    record = next(table for table in bundle.manifest.tables if table.solver == "sde")
    for skipped in toy_variants.SKIPPED:
        read, own = table_from_bundle(bundle, record, skipped), toy_variants.table_over_image(skipped)
        np.testing.assert_array_equal(read.input_rows, own.input_rows)
        np.testing.assert_array_equal(read.output_row, own.output_row)
        np.testing.assert_array_equal(read.timesteps, own.timesteps)
        assert read.noise_draws == own.noise_draws
