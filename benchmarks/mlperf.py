"""MLPerf LoadGen on a bundle: SingleStream, Offline and Server, each for performance and for accuracy.

    make bench-mlperf                            in an environment of its own (benchmarks/peers/loadgen.txt)
    python -m benchmarks.mlperf BUNDLE [--scenario Server] [--samples 32] [--batch 8] [--threads 0]

LoadGen (MLCommons) makes the traffic and the clock, latentc.session draws (benchmarks/mlperf_sut.py). Not a submission:
the model is none of MLPerf's, and runs are short (benchmarks/mlperf.conf, which LoadGen reads as its user.conf).

Accuracy: every picture of the library, as LoadGen logged its bytes, beside the PNG that `latentc sample` writes for the
same label and seed. Alone they are equal; in a batch ONNX Runtime may sum in another order, so one level is allowed.

Writes mlperf_log_summary.txt to benchmarks/results/mlperf/SCENARIO/, and all figures to benchmarks/results/mlperf.json.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from latentc.cli import main as latentc
from latentc.session import Session, open_session

from benchmarks.machine import machine
from benchmarks.mlperf_sut import Item, Pixels, Sut, library, pictures_of

HERE = Path(__file__).parent
CONFIG = HERE / "mlperf.conf"
RESULTS = HERE / "results" / "mlperf.json"
SCENARIOS = ("SingleStream", "Offline", "Server")
SUMMARY, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
WANTED = (
    "Result is", "90.0th percentile latency (ns)", "50.00 percentile latency (ns)", "99.00 percentile latency (ns)",
    "Samples per second", "Completed samples per second", "Scheduled samples per second",
    "min_duration (ms)", "performance_sample_count",
)  # fmt: skip
ALLOWED = 1  # levels of 255, in a batch


def run_loadgen(
    loadgen: Any, session: Session, items: Sequence[Item], scenario: str, mode: str, most: int, logs: Path
) -> list[int]:
    """One test; its logs lie in `logs` afterwards. Returns how many pictures were drawn at once, batch by batch."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.FromConfig(str(CONFIG), "latentc", scenario)
    settings.mode = getattr(loadgen.TestMode, mode)
    log_settings = loadgen.LogSettings()
    log_settings.log_output.outdir = str(logs)
    log_settings.log_output.copy_summary_to_stdout = False
    log_settings.enable_trace = False
    system = Sut(loadgen, lambda places: pictures_of(session, [items[place] for place in places]), most)
    under_test = loadgen.ConstructSUT(system.issue, system.flush)
    samples = loadgen.ConstructQSL(len(items), len(items), lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(under_test, samples, settings, log_settings, "")
    finally:
        loadgen.DestroyQSL(samples)
        loadgen.DestroySUT(under_test)
        system.close()
    return system.batches


def summary(text: str) -> dict[str, str]:
    """The lines of mlperf_log_summary.txt that results are read from."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in pairs}
    return {name: found[name] for name in WANTED if name in found}


def differences(log: Path, expected: Sequence[Pixels]) -> dict[str, int]:
    """Of LoadGen's accuracy log: samples, those that are equal to `expected`, and the largest difference of a level."""
    entries = {entry["qsl_idx"]: bytes.fromhex(entry["data"]) for entry in json.loads(log.read_text(encoding="utf-8"))}
    if sorted(entries) != list(range(len(expected))):
        raise SystemExit(f"LoadGen logged {len(entries)} of {len(expected)} samples")
    apart = []
    for place, picture in enumerate(expected):
        found = np.frombuffer(entries[place], np.uint8)
        if found.size != picture.size:
            raise SystemExit(f"sample {place} has {found.size} bytes, its picture {picture.size}")
        apart.append(int(np.abs(found.astype(int) - picture.reshape(-1)).max()))
    return {"samples": len(apart), "equal": apart.count(0), "largest_difference": max(apart)}


def pictures_of_the_command(bundle: Path, items: Sequence[Item], flag: str, threads: int) -> list[Pixels]:
    """What `latentc sample` writes for each item."""
    from PIL import Image

    found = []
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "out.png"
        for item in items:
            flags = [flag, item.what, "-s", str(item.seed), "-o", str(out), "--threads", str(threads), "--json"]
            with contextlib.redirect_stdout(io.StringIO()):  # the last line of stdout is ours
                status = latentc(["sample", str(bundle), "--backend", "onnxruntime", *flags])
            if status != 0:
                raise SystemExit(f"latentc sample could not draw {item}")
            with Image.open(out) as image:
                found.append(np.asarray(image.convert("RGB")))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scenarios; exit 1 where a picture is another, and one line where LoadGen is not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mlperf")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="default: all three")
    parser.add_argument("--samples", type=int, default=32, help="labels or prompts with their seeds (32)")
    parser.add_argument("--batch", type=int, default=8, help="the most pictures at once (8)")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        import mlperf_loadgen as loadgen
    except ImportError:
        print("benchmarks.mlperf: LoadGen is not installed here; make bench-mlperf does it", file=sys.stderr)
        return 1
    session = open_session(given.bundle, "onnxruntime", given.threads)
    items = library(session.bundle.manifest, given.samples)
    flag = "--label" if hasattr(session.bundle.manifest.conditioning, "labels") else "-p"
    expected = pictures_of_the_command(given.bundle, items, flag, given.threads)
    found: dict[str, Any] = {}
    for scenario in given.scenario or SCENARIOS:
        most = 1 if scenario == "SingleStream" else given.batch
        with tempfile.TemporaryDirectory() as home:
            logs = Path(home)
            batches = run_loadgen(loadgen, session, items, scenario, "PerformanceOnly", most, logs)
            text = (logs / SUMMARY).read_text(encoding="utf-8")
            kept = RESULTS.parent / "mlperf" / scenario
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(logs / SUMMARY, kept / SUMMARY)
            found[scenario] = {"most_at_once": most, "mean_at_once": round(float(np.mean(batches)), 2), **summary(text)}
        with tempfile.TemporaryDirectory() as home:
            run_loadgen(loadgen, session, items, scenario, "AccuracyOnly", most, Path(home))
            found[scenario]["accuracy"] = differences(Path(home) / ACCURACY, expected)
        print(json.dumps({scenario: found[scenario]}), file=sys.stderr)
    manifest = session.bundle.manifest
    defaults = {"solver": manifest.defaults.solver, "steps": manifest.defaults.steps}
    document = {"machine": machine(), "model": manifest.name, **defaults, "threads": given.threads, "scenarios": found}
    RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))
    bounds = [(0 if name == "SingleStream" else ALLOWED) for name in found]
    far = [row["accuracy"]["largest_difference"] > bound for row, bound in zip(found.values(), bounds, strict=True)]
    return 1 if any(far) else 0


if __name__ == "__main__":
    sys.exit(main())
