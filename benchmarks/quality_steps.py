"""Quality against the number of steps, solver by solver, on the two models that this repository has trained.

    python -m benchmarks.quality_steps [--model emoji-dit] [--pictures 99]

Every solver is deterministic, and starts from the same noise. Three figures for each solver and step count:

- psnr_db: the mean over the pictures, against the trajectory of the reference solver in 200 steps. Another solver's 200
  steps are compared with it, too: what they are apart is what the figure cannot tell.
- the model's own judge (benchmarks/quality_judges.py): do the pictures show what was asked for? A trajectory that
  is far from the converged one may be as good a picture; this figure says so.
- relative_time: of one picture, the model's default (its solver and steps) being 1; interleaved in this process.

Needs the emoji (Debian's fonts-noto-color-emoji and unicode-data); a judge is trained where none is kept in build/.
Writes benchmarks/results/quality_steps.json, which holds a model until it is measured again, and
docs/images/quality_steps_MODEL.png: a row for each solver, a column for each step count, the reference last.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latentc.request import Asked, Request, resolve
from latentc.session import Session, open_session

from benchmarks.machine import machine
from benchmarks.quality_judges import SUBJECTS, Subject
from export.pipeline import ExportOptions, export_bundle
from models.ldm.journal import save_grid
from models.ldm.measures import psnr_db
from models.shipped import shipped_checkpoints

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "quality_steps.json"
STEPS = (2, 4, 6, 8, 12, 20, 50)
CONVERGED = 200
SEED = 1_000  # of the judges' own evaluation
CHUNK = 25  # pictures at once
ROUNDS = 7  # of the times


def request_of(session: Session, subject: Subject, solver: str, steps: int, first: int, count: int) -> Request:
    """The pictures from `first` on: labels or prompts."""
    manifest = session.bundle.manifest
    if subject.prompts:
        chosen = subject.prompts[first : first + count]
        return resolve(manifest, Asked(prompts=chosen, solver=solver, steps=steps))
    request = resolve(manifest, Asked(label="0", solver=solver, steps=steps))
    return replace(request, labels=tuple(subject.labels[first : first + count]))


def drawn(session: Session, subject: Subject, solver: str, steps: int, pictures: int) -> torch.Tensor:
    """(N, 3, S, S) in [-1, 1]; the noise is the same for every solver. Kept beside the bundle: a killed run goes on."""
    asked = repr((session.bundle.model_hash, subject.labels, subject.prompts, solver, steps, pictures, CHUNK, SEED))
    kept = session.bundle.root.parent / "pictures" / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npy"
    if not kept.exists():
        parts = [
            session.draw(request_of(session, subject, solver, steps, first, min(CHUNK, pictures - first)), SEED + first)
            for first in range(0, pictures, CHUNK)
        ]
        kept.parent.mkdir(exist_ok=True)
        np.save(kept, np.concatenate(parts))
    return torch.from_numpy(np.load(kept)) * 2 - 1


def relative_times(
    session: Session, subject: Subject, pairs: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], float]:
    """Of one picture each, in turns, as multiples of the median of the model's default."""
    defaults = session.bundle.manifest.defaults
    timed = list(dict.fromkeys([*pairs, (defaults.solver, defaults.steps)]))
    seconds: dict[tuple[str, int], list[float]] = {pair: [] for pair in timed}
    for _ in range(ROUNDS):
        for pair in timed:
            request = request_of(session, subject, *pair, 0, 1)
            begun = time.perf_counter()
            session.draw(request, SEED)
            seconds[pair].append(time.perf_counter() - begun)
    default = statistics.median(seconds[defaults.solver, defaults.steps])
    return {pair: round(statistics.median(of_pair) / default, 3) for pair, of_pair in seconds.items()}


def measured(session: Session, subject: Subject, pictures: int) -> dict[str, Any]:
    """All rows of a model, and its strip of pictures."""
    converged = drawn(session, subject, subject.reference, CONVERGED, pictures)
    agreement = {
        solver: round(psnr_db(converged, drawn(session, subject, solver, CONVERGED, pictures)), 1)
        for solver in subject.solvers
        if solver != subject.reference
    }
    pairs = [(solver, steps) for solver in subject.solvers for steps in STEPS]
    times = relative_times(session, subject, pairs)
    calls = {(table.solver, table.steps): table.calls for table in session.bundle.manifest.tables}
    rows: list[dict[str, Any]] = []
    shown: list[torch.Tensor] = []
    for solver, steps in pairs:
        found = drawn(session, subject, solver, steps, pictures)
        row = {"solver": solver, "steps": steps, "calls": calls[solver, steps], "relative_time": times[solver, steps]}
        rows.append(row | {"psnr_db": round(psnr_db(converged, found), 2), **subject.judged(found)})
        print(json.dumps(rows[-1]), file=sys.stderr)
        shown += [found[subject.shown], *([converged[subject.shown]] if steps == STEPS[-1] else [])]
    save_grid(
        torch.stack(shown), ROOT / f"docs/images/quality_steps_{subject.name}.webp", columns=len(STEPS) + 1, colours=48
    )
    defaults = session.bundle.manifest.defaults
    return {
        "machine": machine(),
        "pictures": pictures,
        "seed": SEED,
        "default": {"solver": defaults.solver, "steps": defaults.steps, "cfg_scale": defaults.cfg_scale},
        "reference": {"solver": subject.reference, "steps": CONVERGED, **subject.judged(converged)},
        "other_solvers_at_as_many_steps_psnr_db": agreement,
        "real": subject.real(),
        "rows": rows,
    }


def bundle_of(subject: Subject) -> Path:
    """build/quality/MODEL, exported where it is not there yet: that takes longer than to draw with it."""
    output = ROOT / "build" / "quality" / subject.name
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        steps = tuple(sorted({*STEPS, CONVERGED, *subject.default_steps}))
        source = str(shipped_checkpoints()[subject.name])
        export_bundle(ExportOptions(source=source, output=output, solvers=subject.solvers, steps=steps))
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, draws, judges, and writes what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_steps")
    parser.add_argument("--model", choices=SUBJECTS, action="append", help="default: both")
    parser.add_argument("--pictures", type=int, default=99, metavar="N", help="for each solver and step count")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in given.model or SUBJECTS:
        subject = SUBJECTS[name](given.pictures)
        session = open_session(bundle_of(subject), "onnxruntime", given.threads)
        known[name] = measured(session, subject, given.pictures)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(known))


if __name__ == "__main__":
    main()
