"""Reads initial noise from a .npy file that a user gives."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentc.errors import RequestError


def latents_from_file(path: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """float32 [B, *shape] from a .npy of float16, float32 or float64; RequestError for anything else.

    Pickled objects are never loaded: they are programs.
    """
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
            rest = file.read(1)
    except OSError as error:
        raise RequestError(f"--latents {path}: cannot be read: {error.strerror}") from None
    except Exception as error:
        # numpy reads the header as Python source: what a damaged one raises has no common base (TokenError, ...)
        raise RequestError(f"--latents {path}: is no whole .npy file of numbers ({str(error)[:120]})") from None
    if rest:
        raise RequestError(f"--latents {path}: has bytes after the array; expected one array, as numpy.save writes it")
    if values.ndim != 4 or values.shape[1:] != shape or len(values) == 0:
        raise RequestError(
            f"--latents {path}: has shape {list(values.shape)}, expected [B, {', '.join(map(str, shape))}]"
        )
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise RequestError(f"--latents {path}: has type {values.dtype}, expected float32")
    with np.errstate(over="ignore"):  # becomes an infinity, which is refused below
        converted = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(converted).all():
        raise RequestError(f"--latents {path}: holds a NaN or an infinity")
    return converted
