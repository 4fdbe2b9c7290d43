"""Which calls of a trajectory may leave the middle out: rules over numbers, without a model.

`changes[i]` says how far the middle's residual of call i is from that of call i - 1, as a share of its length. While
the changes since the last full step add up to less than a threshold, the residual is reused (TeaCache's accumulation,
arXiv 2411.19108, over the residual itself instead of an estimate of it). One threshold gives one static list.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

# From below any change that was seen to one that caches nearly all (docs/step-caching.md).
THRESHOLDS = tuple(float(value) for value in np.geomspace(0.01, 2.0, 128))


def relative_change(now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> float:
    """||now - before|| / ||now|| over all residuals of a step; infinite where the step adds nothing."""
    difference = sum(float(np.square(now[name].astype(np.float64) - before[name]).sum()) for name in now)
    length = sum(float(np.square(values.astype(np.float64)).sum()) for values in now.values())
    return float(np.sqrt(difference / length)) if length > 0 else np.inf


def calls_below(changes: Sequence[float], threshold: float) -> tuple[int, ...]:
    """The calls that reuse a residual, ascending; never the first, which has none to reuse, and never the last.

    changes: one for each call; the first is not read.
    """
    cached = []
    total = 0.0
    for call in range(1, len(changes) - 1):
        total += changes[call]
        if total < threshold:
            cached.append(call)
        else:
            total = 0.0
    return tuple(cached)


def most_cached(
    changes: Sequence[float], psnr_db: Callable[[tuple[int, ...]], float], least_db: float
) -> tuple[tuple[int, ...], float]:
    """Of the lists that thresholds give, the longest that is found to keep the picture within `least_db`; its PSNR.

    Bisects, since longer lists are seldom better; what is returned was measured, and the empty list is no change.
    `psnr_db` draws with a list of calls and compares with the picture of full steps.
    """
    lists = sorted({calls_below(changes, threshold) for threshold in THRESHOLDS}, key=lambda calls: (len(calls), calls))
    low, high = 0, len(lists)
    best: tuple[int, ...] = ()
    while low < high:
        middle = (low + high) // 2
        if psnr_db(lists[middle]) >= least_db:
            low, best = middle + 1, lists[middle]
        else:
            high = middle
    return best, psnr_db(best)
