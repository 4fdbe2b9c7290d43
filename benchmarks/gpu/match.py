"""Builds the engines of bundles, runs them, and compares their pictures with float32 ONNX Runtime's. Needs no torch.

    python -m benchmarks.gpu.match build/gpu/emoji-dit build/gpu/emoji-flux [--output benchmarks/results/gpu_match.json]

Each BUNDLE has the expected pictures beside it (BUNDLE.npy, of prepare.py). What must hold, or the exit code is 3:
PSNR ≥ 35 dB in fp16 (60 in fp32), the same bits for the same seed, enqueued and replayed, and one recorded loop. The
record of CUDA's calls in each request is kept: tests/benchmarks/test_gpu.py compares the fake's with it.
"""

import argparse
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from latentc.backends import open_backend
from latentc.backends.cuda.runtime import Cuda
from latentc.backends.options import EngineOptions
from latentc.bundle import ENGINES, open_bundle
from latentc.engines import build_engines
from latentc.errors import EXIT_PARITY
from latentc.parity import psnr_db
from latentc.session import Session, open_session

from benchmarks.gpu.requests import SEEDS, STEPS, described, request_of
from benchmarks.gpu.where import where, why_no_gpu

BOUNDS_DB = {"fp16": 35.0, "fp32": 60.0}
# The calls that say how a loop ran.
RECORDED = ("begin_capture", "end_capture", "launch", "synchronise", "copy", "copy_rows", "clear", "allocate", "free")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu.match", description=__doc__.splitlines()[0])
    result.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    result.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu_match.json"))
    result.add_argument("--opt-level", type=int)
    result.add_argument("--strip-weights", action="store_true")
    result.add_argument("--version-compatible", action="store_true")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Every bundle, then the document."""
    options = parser().parse_args(arguments)
    reason = why_no_gpu()
    if reason is not None:
        print(f"nothing was measured: {reason}", file=sys.stderr)
        return 1
    engine_options = EngineOptions(
        opt_level=options.opt_level,
        strip_weights=options.strip_weights,
        version_compatible=options.version_compatible,
    )
    results = [matched(bundle, engine_options) for bundle in options.bundles]
    document = {"where": where(), "options": engine_options.record(), "bundles": results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    print(msgspec.json.encode(document).decode())
    return 0 if all(result["passed"] for result in results) else EXIT_PARITY


def matched(path: Path, options: EngineOptions) -> dict[str, object]:
    """One bundle: build, draw, compare."""
    begin = time.perf_counter()
    backend = open_backend("tensorrt", options=options)
    directory = build_engines(open_bundle(path), backend)
    build_s = time.perf_counter() - begin
    begin = time.perf_counter()
    session = open_session(path, "tensorrt")
    load_s = time.perf_counter() - begin
    request = request_of(session.bundle.manifest, steps=STEPS)
    expected = np.load(path.with_suffix(".npy"))
    pictures, records = [], []
    with Record() as record:
        for seed in SEEDS:
            pictures.append(session.draw(request, seed)[0])
            records.append(record.taken())
    again = session.draw(request, SEEDS[0])[0]  # replayed, where the first one was enqueued
    worst = min(psnr_db(got, want) for got, want in zip(pictures, expected, strict=True))
    recorded = _recorded(session)
    precision = session.bundle.manifest.precision
    same = bool(np.array_equal(again, pictures[0]))
    files = {file.name: file.stat().st_size for file in directory.iterdir()}
    return {
        "bundle": path.name,
        "precision": precision,
        "engines": f"{ENGINES}/{directory.name}",
        "request": described(request),
        "psnr_db": worst,
        "bound_db": BOUNDS_DB[precision],
        "same_seed_same_bits": same,
        "recorded_loops": recorded,
        "build_s": build_s,
        "load_s": load_s,
        "engine_bytes": files,
        "device_memory_bytes": session.backend.memory_bytes(),
        "records": records,
        "passed": bool(worst >= BOUNDS_DB[precision] and same and recorded == 1),
    }


def _recorded(session: Session) -> int:
    return int(session.backend.stream_lane.num_recorded)  # type: ignore[attr-defined]


class Record:
    """Notes the calls of CUDA's runtime while it is open; capture and replay are calls as well."""

    def __init__(self) -> None:
        self._calls: list[str] = []
        self._real: dict[str, object] = {}

    def __enter__(self) -> "Record":
        for name in RECORDED:
            self._real[name] = real = getattr(Cuda, name)

            def noted(cuda: Cuda, *arguments: object, name: str = name, real: object = real) -> object:
                self._calls.append(name)
                return real(cuda, *arguments)  # type: ignore[operator]

            setattr(Cuda, name, noted)
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(Cuda, name, real)

    def taken(self) -> list[str]:
        """The calls since the last time."""
        calls, self._calls = self._calls, []
        return calls


if __name__ == "__main__":
    sys.exit(main())
