"""Memory and time of `python -m export` at the sizes of published checkpoints, with random weights of their shapes.

    python -m benchmarks.export_at_size [--only ROW …] [--keep] [--work DIR]

Rows: flux-dev (11.9 B), sd3.5-large (8.1 B) and t5-xxl (4.7 B) in float16, dit-xl-2 (675 M) in float32, compared in
full. For each the disk's own rates are measured, the checkpoint is written (benchmarks/random_checkpoint.py), dropped
from the page cache, exported in a process that is watched from outside, opened and inspected, and removed: one large
model at a time, at most 55 GB of disk. `--keep` leaves checkpoint and bundle in DIR for benchmarks.one_step_at_size.

Writes benchmarks/results/export_at_size.json (rows that were not asked for are kept); the table on stdout is also what
`python -m benchmarks.export_page` puts into docs/export-at-size.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.disk_rate import disk_rate, drop_pages
from benchmarks.machine import machine
from benchmarks.process_tree import Run, run_watched

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "export_at_size.json"
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
HALF = ("--precision", "fp16", "--steps", "4", "--memory", "4GiB")
SIZES = ("--size", "1024x1024", "--size", "256x256")  # FLUX has a table for each size; a step is run at the second
WEIGHTS_PHASE = "weights"


@dataclass(frozen=True)
class Row:
    """One export, and what it must reach."""

    model: str
    flags: tuple[str, ...]
    peak_gb: float
    minutes: float
    copy_share: float | None  # of the disk's copy rate for the weights, which will do in place of the minutes
    disk_gb: float  # checkpoint and bundle together


ROWS = {
    row.model: row
    for row in (
        Row("flux-dev", (*HALF, *SIZES), 2.5, 15, 0.6, 53),
        Row("sd3.5-large", HALF, 2.5, 15, 0.6, 40),
        Row("t5-xxl", HALF, 2.5, 15, 0.6, 22),
        Row("dit-xl-2", ("--steps", "4"), 3.0, 3, None, 9),
    )
}


def measured(row: Row, work: Path) -> dict[str, Any]:
    """Makes, exports and inspects one model in `work`, which keeps both."""
    source, bundle = work / "source", work / "bundle"
    free = shutil.disk_usage(work).free / 1e9
    if free < row.disk_gb:
        raise SystemExit(f"{row.model}: needs {row.disk_gb:g} GB of disk, {free:.0f} GB are free; give --work DIR")
    rate = disk_rate(work)
    made = make_source(row.model, source)
    drop_pages(source)
    run = run_export(source, bundle, row.flags)
    if run.status != 0:
        raise SystemExit(f"{row.model}: the export failed ({run.status}):\n" + "\n".join(run.said))
    weight_bytes = sum(path.stat().st_size for path in (bundle / "graphs").glob("*.weights"))
    seconds = run.phases[WEIGHTS_PHASE].seconds
    found = inspected(bundle)
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    return {
        "model": row.model,
        "command": f"python -m export SOURCE --output BUNDLE {' '.join(row.flags)}",
        "bounds": {"peak_gb": row.peak_gb, "minutes": row.minutes, "copy_share": row.copy_share},
        "disk_bytes_per_s": {key: round(value) for key, value in asdict(rate).items() if key != "file_bytes"},
        "source": made,
        "seconds": round(run.seconds, 1),
        "peak_bytes": asdict(run.peak),
        "phases": {name: asdict(phase) for name, phase in run.phases.items()},
        "written_bytes": run.written_bytes,
        "bundle_bytes": bytes_of(bundle),
        "weight_bytes": weight_bytes,
        "weights_copy_share": round(weight_bytes / seconds / rate.copy, 3) if seconds else None,
        "step_parameters": found["hoisting"]["whole_parameters"],
        "loop_parameters": found["graphs"]["denoise"]["parameters"],
        "parity": parity["figures"],
        "unverified": parity.get("unverified", []),
        "notes": [line for line in run.said if line.startswith("export: ")],
        "machine": machine(),
    }


def make_source(model: str, source: Path, *flags: str) -> dict[str, Any]:
    """Writes a random checkpoint in a process of its own; what it printed, and what it took."""
    command = [sys.executable, "-m", "benchmarks.random_checkpoint", model, "--output", str(source), *flags]
    run = run_watched(command, cwd=ROOT, env=ENVIRONMENT)
    if run.status != 0:
        raise SystemExit(f"{model}: the checkpoint could not be written:\n" + "\n".join(run.said))
    told: dict[str, Any] = json.loads(run.said[-1])
    return {**told, "seconds": round(run.seconds, 1), "peak_bytes": run.peak.hwm}


def run_export(source: Path, bundle: Path, flags: Sequence[str], **limits: float | None) -> Run:
    """`python -m export` from the checkout, watched."""
    command = [sys.executable, "-m", "export", str(source), "--output", str(bundle), *flags]
    return run_watched(command, cwd=ROOT, env=ENVIRONMENT, **limits)  # type: ignore[arg-type]


def inspected(bundle: Path) -> dict[str, Any]:
    """`latentc inspect --json`, which hashes every byte."""
    command = [str(Path(sys.executable).with_name("latentc")), "inspect", str(bundle), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"latentc inspect: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def bytes_of(directory: Path) -> int:
    """Of all files below it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown, with what each row must reach."""
    lines = [
        "| model | parameters | checkpoint → bundle | peak resident set (of it mapped files) | whole export | weights, "
        "of the disk's copy rate | in the loop | worst figure against torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        bounds, peak = row["bounds"], row["peak_bytes"]
        share = row["weights_copy_share"]
        loop = 100 * (1 - row["loop_parameters"] / row["step_parameters"])
        flags = row["command"].partition("BUNDLE ")[2]
        lines.append(
            f"| {row['model']} `{flags}` | {row['source']['parameters'] / 1e9:.2f} B | "
            f"{row['source']['bytes'] / 1e9:.1f} → {row['bundle_bytes'] / 1e9:.1f} GB | "
            f"{peak['hwm'] / 1e9:.2f} GB ({peak['file'] / 1e9:.2f}); bound {bounds['peak_gb']:g} | "
            f"{row['seconds'] / 60:.1f} min; bound {bounds['minutes']:g} | "
            f"{'' if share is None else f'{100 * share:.0f} %'} of {row['disk_bytes_per_s']['copy'] / 1e9:.2f} GB/s | "
            f"{row['step_parameters'] / 1e9:.2f} → {row['loop_parameters'] / 1e9:.2f} B (−{loop:.1f} %) | "
            f"{worst(row['parity'])} |"
        )
    return "\n".join(lines)


def worst(figures: Sequence[Mapping[str, Any]]) -> str:
    """The largest relative error, and the least PSNR where there is one."""
    errors = [figure for figure in figures if figure["measure"] == "relative_l2"]
    pictures = [figure for figure in figures if figure["measure"] == "psnr_db"]
    said = []
    if errors:
        most = max(errors, key=lambda figure: figure["value"] / figure["bound"])
        said.append(f"{most['value']:.1e} of {most['bound']:g} (`{most['tensor']}`)")
    if pictures:
        least = min(pictures, key=lambda figure: figure["value"])
        said.append(f"{least['value']:.1f} dB of {least['bound']:g}")
    return ", ".join(said)


def store(results: Path, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one row beside the others, by rename."""
    known = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {"rows": {}}
    known["rows"][name] = row
    staged = results.with_suffix(".partial")
    staged.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    staged.replace(results)
    rows: dict[str, Any] = known["rows"]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the rows one after the other, and prints the table and one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_at_size")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--keep", action="store_true", help="leave the last row's checkpoint and bundle in --work")
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path(tempfile.gettempdir()), help="a large disk")
    parser.add_argument("--results", metavar="FILE", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        work = Path(tempfile.mkdtemp(prefix=f"latentc-{name}-", dir=given.work))
        kept = False
        try:
            rows = store(given.results, name, measured(ROWS[name], work))
            kept = given.keep and name == given.only[-1]
        finally:
            if not kept:
                shutil.rmtree(work)
        if kept:
            print(f"kept: {work}/source and {work}/bundle", file=sys.stderr)
    print(table(rows))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
