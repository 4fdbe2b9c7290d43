"""What fusing attention and normalisations gives a step in ONNX Runtime (ADR 0023).

    python -m benchmarks.fused_steps [--repeat 15] [--threads 2] [--work DIR]

Exports each model as it is and with the last phase of an export left out (export.compile.fuse), into --work
(build/fused); draws the same request with both in turn, `--repeat` times, and reports the ratio of the medians of a
loop, plain against fused, with the quartiles of the ratios round by round. emoji-dit and emoji-flux are the shipped
models, emoji-flux also at 256² (1024 tokens, a size that it was not trained for); dit-s-2 has random weights. Writes
what it prints to benchmarks/results/fused_steps.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from latentc.request import Asked, resolve
from latentc.schema import LabelConditioning
from latentc.session import Session, open_session, trajectory_of_request

from benchmarks.machine import machine
from export.pipeline import ExportOptions, export_bundle

RESULTS = Path(__file__).parent / "results" / "fused_steps.json"


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    model: str
    steps: int
    pixels: int | None = None  # None: its own


CASES = (Case("emoji-dit", 10), Case("emoji-flux", 10), Case("emoji-flux", 4, 256), Case("dit-s-2", 4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures case by case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/fused"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    document: dict[str, Any] = {"machine": machine(), "threads": given.threads, "cases": []}
    for case in CASES:
        sessions = [
            open_session(bundle_of(case, given.work, fused), "onnxruntime", given.threads) for fused in (False, True)
        ]
        seconds = timed(sessions, case, given.repeat)
        rounds = seconds[0] / seconds[1]
        document["cases"].append({
            "model": case.model,
            "pixels": case.pixels or sessions[0].bundle.manifest.image.height,
            "steps": case.steps,
            "step_ms": [float(1e3 * np.median(column) / (case.steps - 1)) for column in seconds],
            "plain_over_fused": float(np.median(seconds[0]) / np.median(seconds[1])),
            "quartiles": [float(q) for q in np.percentile(rounds, (25, 75))],
        })  # fmt: skip
        print(json.dumps(document["cases"][-1]), file=sys.stderr)
    given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


def bundle_of(case: Case, work: Path, fused: bool) -> Path:
    """The bundle, exported once."""
    output = work / f"{case.model}-{case.pixels or 'own'}-{'fused' if fused else 'plain'}"
    if output.exists():
        return output
    from benchmarks.published_shapes import shapes_of
    from benchmarks.random_checkpoint import write_checkpoint
    from models.shipped import shipped_checkpoints

    source = case.model
    if case.model not in shipped_checkpoints():
        source = str(work / f"{case.model}-source")
        if not Path(source).exists():
            write_checkpoint(Path(source), shapes_of(case.model))
    sizes = () if case.pixels is None else ((case.pixels, case.pixels),)
    options = ExportOptions(source, output, steps=(case.steps,), sizes=sizes)
    if fused:
        export_bundle(options)
    else:
        with patch("export.pipeline.fuse", lambda narrowed, *_: narrowed):
            export_bundle(options)
    return output


def timed(sessions: Sequence[Session], case: Case, repeat: int) -> np.ndarray:
    """Seconds of all steps but the first, [sessions, repeat]; a first round warms up, every second goes backwards."""
    conditioning = sessions[0].bundle.manifest.conditioning
    asked = Asked(prompts=("a red heart",))
    if isinstance(conditioning, LabelConditioning):
        asked = Asked(label=min(conditioning.labels))
    trajectories = [
        trajectory_of_request(s.bundle, resolve(s.bundle.manifest, asked), 7, tokenizers=s.tokenizers)
        for s in sessions
    ]  # fmt: skip
    seconds = np.zeros((len(sessions), 1 + repeat))
    for number in range(1 + repeat):
        for which in range(len(sessions))[:: -1 if number % 2 else 1]:
            sampling = sessions[which].sampling(trajectories[which])
            steps = sampling.steps()
            next(steps)  # the prologue ends, and the first step is run
            begin = time.perf_counter()
            for _ in steps:
                pass
            seconds[which, number] = time.perf_counter() - begin
    return seconds[:, 1:]


if __name__ == "__main__":
    main()
