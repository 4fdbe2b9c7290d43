"""How time and memory grow with tokens, batch, depth and steps, beside what the manifest says of FLOPs and bytes.

    python -m benchmarks.scaling [--threads 0] [--rounds 5]        some five minutes on two quiet cores

Class-conditional DiTs of the S width (384, 6 heads; arXiv 2212.09748) with random weights, exported and run by ONNX
Runtime without guidance. One axis at a time leaves the base (256 tokens, 4 blocks, one picture, 10 steps). FLOPs are
those of the loop in the manifest (export/cost.py), and of them attention's two products, 4·tokens²·width a block.

Memory is that of a process for each point, which draws once: the kernel's high-water mark on top of what it held after
its imports, beside the manifest's prediction (latentc.memory, where it knows the point: one picture). Time is that of
the loop alone, all points in turn in one process, medians. `exponents` are slopes of log-log lines, over the axis and
between its last two points; `time_against_flops` says how much more than its FLOPs the largest point takes.

Writes benchmarks/results/scaling.json; benchmarks/peers/plot_scaling.py draws it.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from latentc.bundle import manifest_of
from latentc.memory import predicted
from latentc.request import Asked, resolve
from latentc.session import Session, open_session, trajectory_of_request

from benchmarks.machine import machine
from export.pipeline import ExportOptions, export_bundle

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "scaling.json"
WIDTH, HEADS, PATCH = 384, 6, 2
TOKENS, BATCH, DEPTH, STEPS = (64, 256, 1024, 4096), (1, 2, 4, 8, 16), (2, 4, 8, 12, 24), (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Point:
    """One request to one model."""

    tokens: int = 256
    depth: int = 4
    batch: int = 1
    steps: int = 10


AXES: Mapping[str, tuple[int, ...]] = {"tokens": TOKENS, "depth": DEPTH, "batch": BATCH, "steps": STEPS}


def points() -> list[Point]:
    """Each once: the axes meet in the base."""
    return list(dict.fromkeys(replace(Point(), **{axis: value}) for axis, values in AXES.items() for value in values))


def write_source(directory: Path, tokens: int, depth: int) -> Path:
    """A DiTPipeline with random weights, and an autoencoder that is next to nothing."""
    side = PATCH * math.isqrt(tokens)
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=4, out_channels=4, num_layers=depth,
        sample_size=side, patch_size=PATCH, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=side)
    DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False)).save_pretrained(directory)
    return directory


def bundles(home: Path) -> dict[tuple[int, int], Path]:
    """By tokens and depth. Parity is checked once a graph, and not over a trajectory: that would take the longest."""
    made = {}
    for tokens, depth in dict.fromkeys((point.tokens, point.depth) for point in points()):
        source, output = home / f"source-{tokens}-{depth}", home / f"bundle-{tokens}-{depth}"
        write_source(source, tokens, depth)
        export_bundle(ExportOptions(source=str(source), output=output, steps=STEPS, memory_bytes=1))
        made[tokens, depth] = output
    return made


def loop_ms(session: Session, point: Point) -> float:
    """All steps of one request, without what comes before and after."""
    asked = Asked(label="0", count=point.batch, steps=point.steps, cfg_scale=1.0)
    request = resolve(session.bundle.manifest, asked)
    sampling = session.sampling(trajectory_of_request(session.bundle, request, 7))
    begun = time.perf_counter()
    for _ in sampling.steps():
        pass
    return (time.perf_counter() - begun) * 1e3


def peak_of_one(bundle: Path, point: Point, threads: int) -> int:
    """Runs in a process of its own: bytes on top of what it held after its imports."""
    onnxruntime.get_available_providers()
    before = _status("VmRSS")
    session = open_session(bundle, "onnxruntime", threads)
    loop_ms(session, point)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measured(found: Mapping[tuple[int, int], Path], threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each point: its FLOPs, time and memory."""
    peaks = {}
    for point in points():
        own = json.dumps([str(found[point.tokens, point.depth]), asdict(point), threads])
        command = [sys.executable, "-m", "benchmarks.scaling", "--point", own]
        peaks[point] = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    sessions = {key: open_session(path, "onnxruntime", threads) for key, path in found.items()}
    times: dict[Point, list[float]] = {point: [] for point in points()}
    for turn in range(rounds + 1):
        for point, of_point in times.items():
            taken = loop_ms(sessions[point.tokens, point.depth], point)
            if turn:  # the first warms up
                of_point.append(taken)
    rows = []
    for point in points():
        manifest = manifest_of(found[point.tokens, point.depth])
        graph = manifest.graphs["denoise"]
        attention = 4 * point.tokens**2 * WIDTH * point.depth
        rows.append({
            **asdict(point),
            "flops": graph.flops * point.batch * point.steps,
            "attention_share": round(attention / graph.flops, 3),
            "loop_ms": round(statistics.median(times[point]), 2),
            "quartiles_ms": [round(float(q), 2) for q in np.percentile(times[point], (25, 75))],
            "peak_bytes": peaks[point],
            "predicted_bytes": predicted(manifest, "normal").peak_bytes if point.batch == 1 else None,
        })  # fmt: skip
    return rows


def exponents(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By axis: slopes of time, FLOPs and memory against it, and how time compares with FLOPs."""
    found = {}
    for axis, values in AXES.items():
        base = asdict(Point())
        line = [
            next(row for row in rows if all(row[name] == (v if name == axis else base[name]) for name in base))
            for v in values
        ]
        time_ms, flops, peak = ([row[name] for row in line] for name in ("loop_ms", "flops", "peak_bytes"))
        rate = [f / t for f, t in zip(flops, time_ms, strict=True)]
        found[axis] = {
            "time": slope(values, time_ms),
            "time_at_the_end": slope(values[-2:], time_ms[-2:]),
            "flops": slope(values, flops),
            "flops_at_the_end": slope(values[-2:], flops[-2:]),
            "memory_at_the_end": slope(values[-2:], peak[-2:]),
            "time_against_flops": round(max(rate) / rate[-1], 2),
        }
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through the logarithms: the exponent of a power law."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports, measures, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--point", help=argparse.SUPPRESS)  # the process of one point
    given = parser.parse_args(arguments)
    if given.point is not None:
        bundle, point, threads = json.loads(given.point)
        print(peak_of_one(Path(bundle), Point(**point), threads))
        return
    with tempfile.TemporaryDirectory() as home:
        rows = measured(bundles(Path(home)), given.threads, given.rounds)
    document = {"machine": machine(), "threads": given.threads, "rows": rows, "exponents": exponents(rows)}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
