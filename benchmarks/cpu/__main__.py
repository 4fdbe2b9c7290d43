"""`make bench`: latentc beside its peers on this CPU, one JSON, half an hour on a quiet machine of two cores.

    python -m benchmarks.cpu [--only MODEL …] [--tools TOOL …] [--rounds N] [--fresh] [--results FILE]

Environments, checkpoints and bundles are made first and kept in build/bench; nothing of that is timed. Then, model by
model: the machine's ceilings, all tools in turn (rounds.py), the ceilings again; then cold starts (cold.py). The JSON
is written after each; what it already has of this commit's cases is not measured again, unless --fresh or --only asks.
The page is written from it by `python -m benchmarks.cpu.page`, which make bench runs last, with the plots.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cpu import prepare
from benchmarks.cpu.cases import COLD, MODELS, PEERS, THREADS, VARIANTS, Cold, Model
from benchmarks.cpu.cold import cold_starts
from benchmarks.cpu.environments import ROOT, made, packages_bytes
from benchmarks.cpu.process import Worker
from benchmarks.cpu.rounds import interleaved
from benchmarks.machine import machine

RESULTS = ROOT / "benchmarks" / "results" / "bench.json"
WORK = ROOT / "build" / "bench"
TOOLS = (*VARIANTS, *PEERS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepares, measures, and prints the document."""
    given = parser().parse_args(arguments)
    environments = ["latentc", *dict.fromkeys(PEERS[tool].environment for tool in given.tools if tool in PEERS)]
    pythons = {name: made(name, given.work / "env") for name in environments}
    document = load(given.results)
    document |= {"command": "make bench", "machine": machine(), "threads": given.threads}
    document["environments"] = document.get("environments", {}) | {
        name: {"bytes": packages_bytes(python)} for name, python in pythons.items()
    }
    bench = Bench(given.work, pythons, given.tools, given.threads)
    for name in given.only or MODELS:
        if given.only or given.fresh or name not in document["models"]:
            print(name, file=sys.stderr)
            document["models"][name] = bench.measured(MODELS[name], given.rounds)
            store(given.results, document)
    for case in COLD:
        key = f"{case.model}, {case.steps} steps, {case.pages} pages"
        wanted = case.model in given.only if given.only else given.fresh or key not in document["cold"]
        if wanted:
            print(f"cold start: {key}", file=sys.stderr)
            document["cold"][key] = bench.cold(case, given.rounds)
            store(given.results, document)
    print(json.dumps(document))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    result.add_argument("--only", nargs="+", metavar="MODEL", choices=list(MODELS), help=", ".join(MODELS))
    result.add_argument("--tools", nargs="+", metavar="TOOL", choices=TOOLS, default=list(TOOLS), help=", ".join(TOOLS))
    result.add_argument("--rounds", type=int, metavar="N", help="fewer than a model has (to try it out)")
    result.add_argument("--threads", type=int, metavar="N", default=THREADS, help=f"of every tool ({THREADS})")
    result.add_argument("--fresh", action="store_true", help="measure again what the results already have")
    result.add_argument("--work", type=Path, metavar="DIR", default=WORK)
    result.add_argument("--results", type=Path, metavar="FILE", default=RESULTS)
    return result


class Bench:
    """The tools of one run: where their environments and files are, and their processes."""

    def __init__(self, work: Path, pythons: Mapping[str, Path], tools: Sequence[str], threads: int) -> None:
        self.work, self.pythons, self.tools, self.threads = work, pythons, tools, threads
        self.latentc = pythons["latentc"].with_name("latentc")
        self.env = prepare.worker_environment(threads)

    def measured(self, model: Model, rounds: int | None = None) -> dict[str, Any]:
        """Ceilings, all tools at each batch size, ceilings."""
        jobs, errors = self.jobs(model)
        first = next((name for name in VARIANTS if name in jobs), None)
        result: dict[str, Any] = {
            "request": asdict(model) | {"rounds": {str(batch): count for batch, count in model.rounds.items()}},
            "ceilings": {}, "tools": {name: {"error": error} for name, error in errors.items()}, "batches": {},
        }  # fmt: skip
        if first is not None:
            result["step"], result["ceilings"]["before"] = self.ceilings(jobs[first]["bundle"], model.steps)
        with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="latentc-bench-") as pictures:
            workers = {}
            for name, job in jobs.items():
                command = [*self.command(name, job)]
                worker = stack.enter_context(Worker(command, self.env, ROOT, Path(pictures) / f"{name}.log"))
                result["tools"][name] = worker.ready
                if "error" not in worker.ready:
                    workers[name] = worker
            for batch, usual in model.rounds.items():
                count = usual if rounds is None else min(usual, rounds)
                result["batches"][str(batch)] = interleaved(workers, batch, count, Path(pictures))
                print(f"  batch {batch}: {brief(result['batches'][str(batch)])}", file=sys.stderr)
                # What failed once is not asked again: its process may be in any state.
                for name, found in result["batches"][str(batch)].items():
                    if "error" in found:
                        workers.pop(name)
        if first is not None:
            _, result["ceilings"]["after"] = self.ceilings(jobs[first]["bundle"], model.steps)
        return result

    def jobs(self, model: Model) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Tool -> what its worker is given, for those that can draw; and why the others cannot."""
        jobs: dict[str, dict[str, Any]] = {}
        errors: dict[str, str] = {}
        source = prepare.source_of(model, self.work)
        for tool in self.tools:
            if model.variants and tool in VARIANTS and tool not in model.variants:
                continue
            try:
                if tool in VARIANTS:
                    bundle = prepare.bundle_of(model, VARIANTS[tool], source, self.work, self.threads, self.latentc)
                    jobs[tool] = prepare.job_of(model, self.threads, source, bundle, bundle, VARIANTS[tool].sample)
                    continue
                target = self.work / model.name / tool
                own = prepare.source_for(PEERS[tool].environment, model, source, self.work)
                job = prepare.job_of(model, self.threads, own, target, target)
                if tool not in ("diffusers", "torch.compile"):
                    prepare.converted(tool, self.pythons[PEERS[tool].environment], job)
                jobs[tool] = job
            except RuntimeError as error:
                errors[tool] = str(error)
                print(f"  {tool} is left out: {error}", file=sys.stderr)
        return jobs, errors

    def command(self, tool: str, job: Mapping[str, Any]) -> list[str]:
        """The worker of a tool."""
        python = self.pythons["latentc" if tool in VARIANTS else PEERS[tool].environment]
        return [str(python), "-m", "benchmarks.cpu.worker", tool, json.dumps(job)]

    def ceilings(self, bundle: str, steps: int) -> tuple[dict[str, float], dict[str, float]]:
        """What a step moves and computes at least, and the machine's ceilings, by `latentc bench`."""
        command = [
            str(self.latentc),
            "bench",
            bundle,
            "--backend",
            "onnxruntime",
            "--threads",
            str(self.threads),
            "--json",
        ]
        command += ["--batch", "1", "--repeat", "1", "--steps", str(min(steps, 4))]
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=True)
        report = json.loads(done.stdout.splitlines()[-1])
        share = report["batches"][0]["share"] or {}
        return {key: share[key] for key in ("flops", "bytes") if key in share}, report["ceilings"]

    def cold(self, case: Cold, rounds: int | None = None) -> dict[str, Any]:
        """Whole processes of all tools that can draw the model."""
        jobs, errors = self.jobs(MODELS[case.model])
        wanted = {name: job for name, job in jobs.items() if not case.tools or name in case.tools}
        with tempfile.TemporaryDirectory(prefix="latentc-bench-") as pictures:
            commands, dropped = {}, {}
            for name, job in wanted.items():
                job["request"] = job["request"] | {"steps": case.steps}
                png = str(Path(pictures) / f"{name}.png")
                commands[name] = self.once(name, job, png)
                environment = self.pythons["latentc" if name in VARIANTS else PEERS[name].environment].parents[1]
                dropped[name] = [environment, *(ROOT / job[part] for part in ("source", "bundle", "converted"))]
            found = cold_starts(
                commands, self.env, min(case.rounds, rounds or case.rounds),
                dropped if case.pages == "dropped" else None,
            )  # fmt: skip
        reasons = {name: {"error": error} for name, error in errors.items() if not case.tools or name in case.tools}
        return {"model": case.model, "steps": case.steps, "pages": case.pages, "tools": found | reasons}

    def once(self, tool: str, job: dict[str, Any], png: str) -> list[str]:
        """One picture in a process of its own: latentc by its command, a peer by a script of a few lines."""
        if tool not in VARIANTS:
            return [*self.command(tool, job), "--once", png]
        from benchmarks.cpu.request_flags import flags

        return [str(self.latentc), "sample", job["bundle"], *flags(job), "-s", str(job["request"]["seed"]), "-o", png]


def brief(found: Mapping[str, Any]) -> str:
    """Medians on one line, for whoever watches."""
    return ", ".join(
        f"{name} {'failed' if 'error' in row else format(row['request_ms']['p50'], '.0f') + ' ms'}"
        for name, row in found.items()
    )


def load(results: Path) -> dict[str, Any]:
    """What was measured before."""
    if results.is_file():
        found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
        return found
    return {"models": {}, "cold": {}}


def store(results: Path, document: Mapping[str, Any]) -> None:
    """Writes the document, by rename: six digits a number, a list of numbers on one line."""
    results.parent.mkdir(parents=True, exist_ok=True)
    staged = results.with_suffix(".partial")
    rounded = json.loads(json.dumps(document), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    text = json.dumps(rounded, indent=1)
    lists = re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    staged.write_text(lists + "\n", encoding="utf-8")
    staged.replace(results)


if __name__ == "__main__":
    main()
