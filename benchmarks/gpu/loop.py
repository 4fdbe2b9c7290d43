"""The loop three ways on one bundle: one CUDA graph, enqueued step by step, and with a wait after each step. No torch.

    python -m benchmarks.gpu.loop BUNDLE … [--batch 1,8] [--repeat 20] [--output benchmarks/results/gpu_loop.json]

Engines are built if they are not there. The three ways take turns, request by request, so that clocks and temperature
are the same for all. Times are of the whole request, from the trajectory on the host to the picture on the host, and of
the loop with the decoder alone, by CUDA events. Ceilings are measured before and after.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from latentc.backends import open_backend
from latentc.backends.options import EngineOptions
from latentc.bench.ceilings import measured_ceilings
from latentc.bench.requests import percentiles
from latentc.bundle import open_bundle
from latentc.engines import build_engines, is_up_to_date
from latentc.request import Request
from latentc.sampler import Sampling
from latentc.session import Session, open_session, trajectory_of_request

from benchmarks.gpu.requests import described, request_of
from benchmarks.gpu.where import where, why_no_gpu

WARM_UPS = 3


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu.loop", description=__doc__.splitlines()[0])
    result.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    result.add_argument("--batch", default="1,8", help="pictures at once")
    result.add_argument("--steps", type=int)
    result.add_argument("--repeat", type=int, default=20)
    result.add_argument("--prologue", choices=["cpu"], default="")
    result.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu_loop.json"))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Every bundle and batch, then the document."""
    options = parser().parse_args(arguments)
    batches = [int(part) for part in options.batch.split(",")]
    reason = why_no_gpu()
    if reason is not None:
        print(f"nothing was measured: {reason}", file=sys.stderr)
        return 1
    results = []
    for path in options.bundles:
        engine_options = EngineOptions(batch=max(batches), prologue=options.prologue)
        bundle, backend = open_bundle(path), open_backend("tensorrt", options=engine_options)
        if not is_up_to_date(bundle, backend):
            build_engines(bundle, backend)
        session = open_session(path, "tensorrt")
        half = session.bundle.manifest.precision == "fp16"
        before = measured_ceilings(session.backend, on_device=True, half=half)
        for batch in batches:
            request = request_of(session.bundle.manifest, batch, options.steps)
            results.append({"bundle": path.name, **described(request), **ways(session, request, options.repeat)})
        after = measured_ceilings(session.backend, on_device=True, half=half)
        results[-1] |= {"ceilings_before": before, "ceilings_after": after}
    document = {"where": where(), "results": results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    print(msgspec.json.encode(document).decode())
    return 0


def ways(session: Session, request: Request, repeat: int) -> dict[str, object]:
    """Milliseconds of each way: the request, and the loop with the decoder."""
    drawn: dict[str, Callable[[Sampling], None]] = {
        "graph": lambda sampling: sampling.replay(),
        "enqueue": lambda sampling: _stepped(session, sampling, waits=False),
        "wait": lambda sampling: _stepped(session, sampling, waits=True),
    }
    requests: dict[str, list[float]] = {way: [] for way in drawn}
    loops: dict[str, list[float]] = {way: [] for way in drawn}
    for number in range(WARM_UPS + repeat):
        trajectory = trajectory_of_request(session.bundle, request, number, tokenizers=session.tokenizers)
        for way, draw in drawn.items():
            begin = time.perf_counter()
            sampling = session.sampling(trajectory)
            first = session.backend.now()
            draw(sampling)
            last = session.backend.now()
            sampling.picture()
            request_ms = (time.perf_counter() - begin) * 1e3
            if number >= WARM_UPS:
                requests[way].append(request_ms)
                loops[way].append(last.ms_since(first))
    return {
        "request_ms": {way: percentiles(times) for way, times in requests.items()},
        "loop_ms": {way: percentiles(times) for way, times in loops.items()},
        "recorded_loops": int(session.backend.stream_lane.num_recorded),  # type: ignore[attr-defined]
        "device_memory_bytes": session.backend.memory_bytes(),
    }


def _stepped(session: Session, sampling: Sampling, waits: bool) -> None:
    for _ in sampling.steps():
        if waits:
            session.backend.stream_lane.pool.synchronise()  # type: ignore[attr-defined]
    sampling.run_decoder()


if __name__ == "__main__":
    sys.exit(main())
