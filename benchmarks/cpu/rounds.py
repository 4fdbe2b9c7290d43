"""Requests of all tools in turn, round after round, and what is read off them: times, ratios, pictures compared.

In every round each tool draws once, with the same seed; the order is turned by one from round to round, so that no
tool always follows the same other. A ratio is one of medians; its interval is that of 95 % of 2,000 resamplings of the
rounds (both tools' times of a round are drawn together: what slowed one down may have slowed the other).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from latentc.bench.requests import percentiles
from latentc.parity import psnr_db

from benchmarks.cpu.cases import REFERENCE
from benchmarks.cpu.process import Worker

WARM_UPS = 2  # the first compiles, and its pictures are compared
RESAMPLINGS = 2000


def interleaved(workers: Mapping[str, Worker], count: int, rounds: int, pictures: Path) -> dict[str, dict[str, Any]]:
    """Tool -> its times and its distance from the reference, or {"error": …}; `count` pictures a request."""
    names = list(workers)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    errors: dict[str, str] = {}
    saved = {name: pictures / f"{name}-{count}.npy" for name in names}
    for number in range(WARM_UPS + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in errors:
                continue
            save = str(saved[name]) if number == 0 else None
            answer = workers[name].ask({"seed": number + 1, "count": count, "save": save})
            if "error" in answer:
                errors[name] = answer["error"]
            elif number >= WARM_UPS:
                samples[name].append(answer)
            else:
                samples.setdefault(name, [])
    found: dict[str, dict[str, Any]] = {}
    reference = None if REFERENCE in errors else _load(saved.get(REFERENCE))
    for name in names:
        if name in errors:
            found[name] = {"error": errors[name]}
            continue
        found[name] = summary(samples[name], count)
        if reference is not None:
            found[name]["psnr_db"] = _psnr(_load(saved[name]), reference)
    return found


def summary(samples: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Percentiles of a request and its parts; `requests_ms` are the rounds themselves."""
    requests = [sample["request_ms"] for sample in samples]
    parts = {
        "request_ms": requests,
        "prologue_ms": [sample["prologue_ms"] for sample in samples],
        "step_ms": [step for sample in samples for step in sample["step_ms"]],
        "decode_ms": [sample["decode_ms"] for sample in samples],
    }
    return {
        **{name: msgspec.to_builtins(percentiles(values)) for name, values in parts.items()},
        "images_per_s": count / (float(np.median(requests)) / 1e3),
        "requests_ms": [round(value, 3) for value in requests],
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times longer theirs take, at the medians, with the interval; rounds are paired by their place."""
    both = np.array([ours, theirs], np.float64)  # [2, rounds]
    drawn = np.random.default_rng(0).integers(0, both.shape[1], (RESAMPLINGS, both.shape[1]))
    medians = np.median(both[:, drawn], axis=2)  # [2, RESAMPLINGS]
    low, high = np.percentile(medians[1] / medians[0], (2.5, 97.5))
    own, other = np.median(both, axis=1)
    return {"ratio": float(other / own), "low": float(low), "high": float(high)}


def _load(path: Path | None) -> npt.NDArray[np.float32] | None:
    return np.load(path) if path is not None and path.is_file() else None


def _psnr(found: npt.NDArray[np.float32] | None, reference: npt.NDArray[np.float32]) -> float | None:
    """Of the least alike picture; None where shapes differ or something is no number: JSON has no NaN."""
    if found is None or found.shape != reference.shape:
        return None
    least = min(psnr_db(own, other) for own, other in zip(found, reference, strict=True))
    return None if math.isnan(least) else least
