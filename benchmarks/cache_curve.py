"""Step caching: time against PSNR, at several thresholds and at the levels of a bundle.

    python -m benchmarks.cache_curve [--models emoji-dit,emoji-flux,dit-s-2] [--repeat 9] [--threads 1] [--work DIR]
    python benchmarks/peers/plot_cache_curve.py benchmarks/results/cache_curve.json docs/images/cache_curve.svg

Exports what is not in --work (build/cache) yet with `--cache`: the shipped models with their default steps, a random
DiT-S/2 with 20 (its weights are noise, so that only its time says something). Each list of calls draws the same
requests as full steps do, which no calibration has seen, two pictures each. PSNR is of these: mean, least and most.
Time is of all steps and the decoder: every round draws with each list once, full steps too; the ratio is of medians.

The last line of stdout is one JSON document; writes benchmarks/results/cache_curve.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from latentc.parity import psnr_db
from latentc.request import Asked, Request, resolve
from latentc.sampler import Sampling
from latentc.schema import LabelConditioning, Manifest
from latentc.session import Session, open_session, trajectory_of_request
from latentc.trajectory import Trajectory

from benchmarks.machine import machine
from export.step_cache.calibrate import watched
from export.step_cache.schedule import THRESHOLDS, calls_below

RESULTS = Path(__file__).parent / "results" / "cache_curve.json"
MODELS = ("emoji-dit", "emoji-flux", "dit-s-2")
RANDOM_STEPS = 20
PROMPTS = ("red apple", "smiling cat face", "blue heart", "house with garden")
FIRST_SEED = 100
POINTS = 10  # thresholds of a curve


@dataclass(frozen=True)
class Schedule:
    """One list of calls: of a threshold, of a level, of every second call …, or full steps."""

    name: str
    threshold: float | None
    calls: tuple[int, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the models one after the other, and stores what is there after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/cache"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    document: dict[str, Any] = {"machine": machine(), "threads": given.threads, "models": {}}
    for name in given.models.split(","):
        session = open_session(bundle_of(name, given.work), "onnxruntime", given.threads)
        document["models"][name] = curve(session, given.repeat)
        given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: measured", file=sys.stderr)
    print(json.dumps(document))
    return 0


def bundle_of(name: str, work: Path) -> Path:
    """The bundle of a model with a step cache, exported once."""
    output = work / name
    if not output.exists():
        from benchmarks.published_shapes import shapes_of
        from benchmarks.random_checkpoint import write_checkpoint
        from export.pipeline import ExportOptions, export_bundle
        from models.shipped import shipped_checkpoints

        shipped = name in shipped_checkpoints()
        source = work / f"{name}-source"
        if not shipped and not source.exists():
            write_checkpoint(source, shapes_of(name))
        steps = () if shipped else (RANDOM_STEPS,)
        export_bundle(ExportOptions(name if shipped else str(source), output, steps=steps, cache=True))
    return output


def curve(session: Session, repeat: int) -> dict[str, Any]:
    """All schedules of one model: work, time and PSNR."""
    manifest = session.bundle.manifest
    requests = requests_of(manifest)
    trajectories = [
        trajectory_of_request(session.bundle, request, FIRST_SEED + number, tokenizers=session.tokenizers)
        for number, request in enumerate(requests)
    ]
    fulls = [watched(session.sampling(trajectory)) for trajectory in trajectories]
    changes = [float(value) for value in np.mean([full.changes[1:] for full in fulls], axis=0)]
    schedules = schedules_of(requests[0], [np.inf, *changes])
    quality = {
        schedule.name: [
            psnr_db(session.sampling(replace(trajectory, cached=schedule.calls)).draw(), full.picture)
            for trajectory, full in zip(trajectories, fulls, strict=True)
        ]
        for schedule in schedules
    }
    seconds = timed(session, trajectories[0], schedules, repeat)
    cost = manifest.graphs["denoise_cached"].flops / manifest.graphs["denoise"].flops
    table = requests[0].table
    assert manifest.step_cache is not None, "exported with --cache"
    return {
        "pipeline": manifest.pipeline,
        "solver": table.solver,
        "steps": table.steps,
        "blocks": [manifest.step_cache.first_block, manifest.step_cache.end_block, manifest.step_cache.blocks],
        "flops_of_cached_step": cost,
        "requests": len(requests),
        "pictures_of_request": requests[0].count,
        "change_of_residual": changes,
        "schedules": [
            {
                "name": schedule.name,
                "threshold": schedule.threshold,
                "cached_calls": len(schedule.calls),
                "calls": table.calls,
                "loop_flops": 1 - len(schedule.calls) / table.calls * (1 - cost),
                "seconds_p50": float(np.median(seconds[schedule.name])),
                "time_ratio": float(np.median(seconds[schedule.name]) / np.median(seconds["full"])),
                "psnr_db": {
                    "mean": float(np.mean(quality[schedule.name])),
                    "least": min(quality[schedule.name]),
                    "most": max(quality[schedule.name]),
                },
            }
            for schedule in schedules
        ],
    }


def requests_of(manifest: Manifest) -> list[Request]:
    """Two pictures of each of four labels or prompts, everything else by default."""
    if isinstance(manifest.conditioning, LabelConditioning):
        labels = sorted(manifest.conditioning.labels)
        asked = [Asked(label=label, count=2) for label in labels[:: max(1, len(labels) // 4)][:4]]
    else:
        asked = [Asked(prompts=(prompt,), count=2) for prompt in PROMPTS]
    return [resolve(manifest, each) for each in asked]


def schedules_of(request: Request, changes: list[float]) -> list[Schedule]:
    """Full steps, thresholds spread over what they can give, every second and third call, and the bundle's levels."""
    found: dict[tuple[int, ...], float] = {}
    for threshold in THRESHOLDS:
        found.setdefault(calls_below(changes, threshold), threshold)
    lists = sorted((calls for calls in found if calls), key=len)
    places = sorted({round(place) for place in np.linspace(0, len(lists) - 1, min(POINTS, len(lists)))})
    spread = [Schedule(f"threshold {found[lists[p]]:.3g}", found[lists[p]], lists[p]) for p in places]
    last = len(changes) - 1
    uniform = [
        Schedule(f"every {k}", None, tuple(call for call in range(1, last) if call % k)) for k in (2, 3)
    ]  # fmt: skip
    levels = [Schedule(level, None, cached.calls) for level, cached in request.table.cached.items()]
    return [Schedule("full", None, ()), *spread, *uniform, *levels]


def timed(session: Session, trajectory: Trajectory, schedules: list[Schedule], repeat: int) -> dict[str, list[float]]:
    """Seconds of steps and decoder, interleaved: each round draws with every schedule."""
    seconds: dict[str, list[float]] = {schedule.name: [] for schedule in schedules}
    for number in range(1 + repeat):
        for schedule in schedules:
            sampling: Sampling = session.sampling(replace(trajectory, cached=schedule.calls))
            begin = time.perf_counter()
            sampling.draw()
            if number:  # the first round warms up
                seconds[schedule.name].append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
