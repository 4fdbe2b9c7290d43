"""DiT-XL/2 at 256² and 512², and a FLUX of the published width: TensorRT against its peers, all in fp16, interleaved.

    python -m benchmarks.gpu.peers                               everything: about an hour, 40 GB of disk, 24 GB of GPU
    python -m benchmarks.gpu.peers --case dit-256 --batch 1 --peer graph --peer compile --repeat 10
    python -m benchmarks.gpu.peers --plan                        says what would be done, and does nothing

Weights are random (benchmarks/random_checkpoint.py): time does not depend on them. Each case is exported twice, with
and without hoisting. Every peer is a process of its own (worker.py) that holds its model on the GPU and draws when it
is told to; the controller asks one after the other, round by round, so that all meet the same clocks and temperature.

    graph       latentc on TensorRT, the loop as one CUDA graph       whole    the same with nothing hoisted
    enqueue     latentc on TensorRT, step by step                     ort      latentc on ONNX Runtime's CUDA
    wait        the same with a wait after each step                  eager    diffusers
                                                                      compile  diffusers, torch.compile(max-autotune)

Needs torch with CUDA, diffusers, TensorRT, onnxruntime-gpu. A peer that cannot run is in the result with its reason.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
from latentc.bench.requests import percentiles

from benchmarks.gpu.where import where, why_no_gpu

PEERS = ("graph", "enqueue", "wait", "whole", "ort", "eager", "compile")
WARM_UPS = 3


@dataclass(frozen=True)
class Case:
    """A model at one size: what random_checkpoint calls it, how it is drawn, how it is exported."""

    model: str
    pixels: int
    steps: int
    cfg_scale: float
    solver: str


CASES = {
    "dit-256": Case("dit-xl-2", 256, 50, 4.0, "ddim"),
    "dit-512": Case("dit-xl-2", 512, 50, 4.0, "ddim"),
    "flux": Case("flux-4", 1024, 28, 1.0, "euler"),  # 4 double and 8 single blocks of the published width
}
BATCHES = {"dit-256": (1, 8), "dit-512": (1, 8), "flux": (1,)}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu.peers", description=__doc__.splitlines()[0])
    result.add_argument("--case", action="append", choices=sorted(CASES), help="default: all")
    result.add_argument("--batch", action="append", type=int, help="default: 1 and 8, 1 for flux")
    result.add_argument("--peer", action="append", choices=PEERS, help="default: all")
    result.add_argument("--repeat", type=int, default=10)
    result.add_argument(
        "--work", type=Path, default=Path("build/gpu-peers"), help="checkpoints and bundles are kept here"
    )
    result.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu_peers.json"))
    result.add_argument("--plan", action="store_true", help="print the commands, run nothing")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Prepares, measures case by case, writes after each."""
    options = parser().parse_args(arguments)
    cases = options.case or list(CASES)
    peers = options.peer or list(PEERS)
    if options.plan:
        for name in cases:
            for command in [*preparation(name, options.work), *builds(name, options.work, BATCHES[name])]:
                print(" ".join(command))
            for batch in options.batch or BATCHES[name]:
                for peer in peers:
                    print(" ".join(worker(name, peer, batch, options.work)))
        return 0
    reason = why_no_gpu()
    if reason is not None:
        print(f"nothing was measured: {reason}", file=sys.stderr)
        return 1
    results: list[dict[str, object]] = []
    for name in cases:
        prepare(name, options.work, peers)
        for command in builds(name, options.work, options.batch or BATCHES[name]):
            subprocess.run(command, check=True, stdout=sys.stderr)
        for batch in options.batch or BATCHES[name]:
            measured = interleaved(name, peers, batch, options.work, options.repeat)
            results.append({"case": name, "batch": batch, **vars(CASES[name]), "peers": measured})
            document = {"where": where(), "repeat": options.repeat, "results": results}
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    print(msgspec.json.encode({"where": where(), "results": results}).decode())
    return 0


def preparation(name: str, work: Path) -> list[list[str]]:
    """The checkpoint and the two bundles of a case, as commands."""
    case, source = CASES[name], work / f"{name}-source"
    export = [sys.executable, "-m", "export", str(source), "--precision", "fp16", "--target", "tensorrt-10.3"]
    export += ["--solver", case.solver, "--steps", str(case.steps)]
    # A DiT has one size, its own; others are told for which sizes to make tables.
    export += [] if name.startswith("dit") else ["--size", f"{case.pixels}x{case.pixels}"]
    return [
        [sys.executable, "-m", "benchmarks.random_checkpoint", case.model, "--output", str(source), "--dtype", "fp16"],
        [*export, "--output", str(work / name)],
        [*export, "--output", str(work / f"{name}-whole"), "--no-hoist"],
    ]


def prepare(name: str, work: Path, peers: list[str]) -> None:
    """Runs what is not there yet. Where both bundles are, only diffusers needs the checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, *exports = preparation(name, work)
    source, bundles = work / f"{name}-source", (work / name, work / f"{name}-whole")
    missing = [not (bundle / "manifest.json").exists() for bundle in bundles]
    if not source.exists() and (any(missing) or {"eager", "compile"} & set(peers)):
        subprocess.run(checkpoint, check=True, stdout=sys.stderr)
        set_size(source, CASES[name])
    for command, absent in zip(exports, missing, strict=True):
        if absent:
            subprocess.run(command, check=True, stdout=sys.stderr)


def set_size(source: Path, case: Case) -> None:
    """A DiT draws the size that its configuration says; its weights do not depend on it."""
    if not case.model.startswith("dit"):
        return
    path = source / "transformer/config.json"
    config = json.loads(path.read_text())
    config["sample_size"] = case.pixels // 8
    path.write_text(json.dumps(config, indent=2))


def builds(name: str, work: Path, batches: tuple[int, ...] | list[int]) -> list[list[str]]:
    """The engines of both bundles, for the case's one size."""
    case = CASES[name]
    flags = ["--backend", "tensorrt", "--batch", str(max(batches)), "--size", f"{case.pixels}x{case.pixels}"]
    command = [sys.executable, "-m", "latentc.cli", "build"]
    return [[*command, str(work / bundle), *flags] for bundle in (name, f"{name}-whole")]


def worker(name: str, peer: str, batch: int, work: Path) -> list[str]:
    """The process of one peer."""
    case = CASES[name]
    command = [sys.executable, "-m", "benchmarks.gpu.worker", peer, "--batch", str(batch)]
    if peer in ("eager", "compile"):
        command += ["--source", str(work / f"{name}-source"), "--pixels", str(case.pixels)]
    else:
        command += ["--bundle", str(work / (f"{name}-whole" if peer == "whole" else name))]
    return [*command, "--steps", str(case.steps), "--cfg-scale", str(case.cfg_scale), "--solver", case.solver]


def interleaved(name: str, peers: list[str], batch: int, work: Path, repeat: int) -> dict[str, object]:
    """All peers ready, then round after round; what each one took, and what it holds."""
    processes = {peer: Peer(worker(name, peer, batch, work)) for peer in peers}
    try:
        ready = {peer: process.answer() for peer, process in processes.items()}
        alive = [peer for peer in peers if "error" not in ready[peer]]
        times: dict[str, list[dict[str, float]]] = {peer: [] for peer in alive}
        for number in range(WARM_UPS + repeat):
            for peer in alive:
                answer = processes[peer].ask(number)
                if number >= WARM_UPS and "error" not in answer:
                    times[peer].append(answer)
        results: dict[str, object] = {peer: answer for peer, answer in ready.items() if "error" in answer}
        for peer in alive:
            samples = times[peer]
            if not samples:
                results[peer] = {"error": "it drew nothing"}
                continue
            request_ms = [sample["request_ms"] for sample in samples]
            results[peer] = {
                **ready[peer],
                "request_ms": percentiles(request_ms),
                "step_ms": percentiles([sample["step_ms"] for sample in samples]),
                "images_per_s": batch / (percentiles(request_ms).p50 / 1e3),
                "device_memory_bytes": samples[-1]["device_memory_bytes"],
            }
        return results
    finally:
        for process in processes.values():
            process.close()


class Peer:
    """A worker and its pipes: one line of JSON when it is ready, one for each number that it is sent."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> dict[str, object]:
        """The next line; an error if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"the process ended with code {self._process.wait()}"}

    def ask(self, seed: int) -> dict[str, float]:
        """Draws once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{seed}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": 1.0}
        return self.answer()  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the process: it ends when its input does."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
