"""What hoisting does: what leaves the loop, what it costs in numbers, and what it gains in precision and time.

    python -m benchmarks.hoisting                       structure, half, trajectory, time
    python -m benchmarks.hoisting structure             one section (several: structure half)
    python -m benchmarks.hoisting structure --match DiT     only models whose names hold this
    python -m benchmarks.hoisting --full                the compile of a DiT-XL/2 as well (minutes, 15 GB of disk)
    python -m benchmarks.hoisting --results FILE        writes the sections into FILE, beside those that it has

Progress goes to stderr; the last line of stdout is one JSON document: section -> figures, the machine, the versions.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.hoisting_compile import CompileFigures, compile_figures
from benchmarks.hoisting_half import HalfErrors, Source, half_errors, small_denoisers
from benchmarks.hoisting_structure import Structure, real_denoisers, structure_of
from benchmarks.hoisting_time import StepTimes, step_times
from benchmarks.hoisting_trace import graph_from_denoiser
from benchmarks.hoisting_trajectory import TrajectoryErrors, trajectory_errors
from benchmarks.machine import machine

SOURCES: tuple[Source, ...] = ("float32", "bfloat16")
Figures = Structure | HalfErrors | TrajectoryErrors | StepTimes | CompileFigures


def structure(match: str) -> Iterator[Structure]:
    """What leaves the loop at real sizes, without weights."""
    for denoiser in real_denoisers():
        if match in denoiser.name:
            yield structure_of(denoiser)


def half(match: str) -> Iterator[HalfErrors]:
    """Parity, and the error of one half-precision step, on small models."""
    for denoiser in small_denoisers():
        for source in SOURCES:
            if match in denoiser.name:
                graph = graph_from_denoiser(denoiser, weights=True, bfloat16=source == "bfloat16")
                yield half_errors(denoiser, graph, source)


def trajectory(match: str) -> Iterator[TrajectoryErrors]:
    """The error of a half-precision trajectory of 20 steps, on a small DiT."""
    for source in SOURCES:
        if match in "DiT":
            yield trajectory_errors(source, steps=20)


def times(match: str) -> Iterator[StepTimes]:
    """Time of one step of DiT-S/2 at 256² with guidance."""
    for denoiser in real_denoisers():
        if denoiser.name.startswith("DiT-S/2") and match in denoiser.name:
            yield step_times(denoiser, graph_from_denoiser(denoiser, weights=True), rounds=10)


def full(match: str) -> Iterator[CompileFigures]:
    """Time and memory of the compile of a DiT-XL/2."""
    if match in "DiT-XL/2":
        yield compile_figures()


SECTIONS: dict[str, Callable[[str], Iterator[Figures]]] = {
    "structure": structure,
    "half": half,
    "trajectory": trajectory,
    "time": times,
    "full": full,
}


def main(arguments: list[str]) -> None:
    """Runs the sections that are asked for, and prints their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hoisting", description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"{', '.join(SECTIONS)}; none: all but full")
    parser.add_argument("--full", action="store_true", help="the compile of a DiT-XL/2 as well")
    parser.add_argument("--match", default="", help="only models whose names hold this text")
    parser.add_argument("--results", type=Path, help="a JSON file to write the sections into")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    wanted = options.sections or ([] if options.full else [name for name in SECTIONS if name != "full"])
    document: dict[str, Any] = {}
    for name in [*wanted, *(["full"] if options.full else [])]:
        document[name] = measured(name, options.match)
        if options.results is not None:  # after each section: a later one may fail
            write_results(options.results, document)
    print(json.dumps(document, ensure_ascii=False))


def measured(section: str, match: str) -> dict[str, Any]:
    """One section's figures, with the command that gives them and what they were measured on."""
    figures = []
    on = machine()
    start = time.perf_counter()
    for found in SECTIONS[section](match):
        print(f"{section:<11}{time.perf_counter() - start:7.1f} s  {found}", file=sys.stderr, flush=True)
        figures.append(asdict(found))
    filtered = f" --match '{match}'" if match else ""
    return {"command": f"python -m benchmarks.hoisting {section}{filtered}", "machine": on, "figures": figures}


def write_results(path: Path, document: dict[str, Any]) -> None:
    """Puts the sections of `document` into the file; others stay."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
