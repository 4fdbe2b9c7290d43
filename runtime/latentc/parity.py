"""How far apart two computations are: the two measures of the project, without default tolerances.

Both return NaN when either side holds a NaN or an infinity, and NaN is within no bound
(`schema.Figure.holds`), so a broken computation can never pass.
"""

import math

import numpy as np
import numpy.typing as npt

# What equal tensors are said to have: JSON, in which the figures are kept, has no infinity.
MAX_PSNR_DB = 200.0


def relative_l2(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """||actual - expected|| / ||expected||, in float64.

    Two zero tensors are 0 apart; anything against a zero tensor is infinitely far.
    Raises ValueError if the shapes differ: broadcasting would compare the wrong things.
    """
    got, want = _pair(actual, expected)
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return math.nan
    error, scale = float(np.linalg.norm(got - want)), float(np.linalg.norm(want))
    if scale == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / scale


def psnr_db(actual: npt.ArrayLike, expected: npt.ArrayLike, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio 10 log10(peak² / MSE) in decibels, at most MAX_PSNR_DB.

    Raises ValueError if the shapes differ or nothing is compared.
    """
    got, want = _pair(actual, expected)
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return math.nan
    mean_square = float(np.mean(np.square(got - want)))
    if mean_square == 0.0:
        return MAX_PSNR_DB
    return min(MAX_PSNR_DB, 10.0 * math.log10(peak * peak / mean_square))


def _pair(actual: npt.ArrayLike, expected: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both as flat float64 vectors of the same length."""
    got, want = np.asarray(actual), np.asarray(expected)
    if got.shape != want.shape:
        raise ValueError(f"cannot compare shapes {list(got.shape)} and {list(want.shape)}")
    if want.size == 0:
        raise ValueError("cannot compare empty tensors")
    return got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
