"""Given initial noise: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from latentc.errors import RequestError
from latentc.latents import latents_from_file

SHAPE = (4, 2, 3)
GOOD = np.random.default_rng(0).normal(size=(2, 4, 2, 3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_are_read_as_float32(tmp_path: Path, dtype: type[np.generic], order: str) -> None:
    np.save(tmp_path / "a.npy", np.asarray(GOOD.astype(dtype), order=order))  # type: ignore[call-overload]
    read = latents_from_file(tmp_path / "a.npy", SHAPE)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, GOOD.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (GOOD[:, :3], r"has shape \[2, 3, 2, 3\], expected \[B, 4, 2, 3\]"),
        (GOOD[0], r"has shape \[4, 2, 3\]"),
        (GOOD[:0], r"has shape \[0, 4, 2, 3\]"),
        (GOOD.astype(np.int64), "has type int64, expected float32"),
        (np.where(GOOD > 0, np.nan, GOOD), "holds a NaN or an infinity"),
        (GOOD * 1e300, "holds a NaN or an infinity"),
        (np.array([object()]), "is no whole .npy file of numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, values: npt.NDArray[np.generic], why: str) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(RequestError, match=why):
        latents_from_file(tmp_path / "a.npy", SHAPE)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        latents_from_file(path, SHAPE)
    with pytest.raises(RequestError, match="cannot be read: Is a directory"):
        latents_from_file(tmp_path, SHAPE)
    np.save(path, GOOD)
    whole = path.read_bytes()
    for data in (b"", b"text\n", whole[:7], whole[:90], whole[:-1], whole + b"\0", b"\x93NUMPY\x01\x00\x05\x00{(((("):
        path.write_bytes(data)
        with pytest.raises(RequestError) as caught:
            latents_from_file(path, SHAPE)
        assert "\n" not in str(caught.value)
