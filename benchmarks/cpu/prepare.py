"""What is drawn from: checkpoints, bundles with their engines, and what the peers convert. Kept in build/bench.

Nothing here is timed. What cannot be made is a reason in one line, which the table then gives.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cpu.cases import SEED, Model, Variant
from benchmarks.cpu.environments import ROOT
from benchmarks.cpu.older_names import with_published_names

CHECKOUT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"}
# The peers' environments see this folder's modules and nothing else of the checkout: latentc is the installed one.
WORKER = {
    "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
    "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "bench" / "inductor"),
}  # fmt: skip
# "Older" is transformers 4, which optimum asks for: its T5Tokenizer reads spiece.model only, and CLIP's text tower has
# a level `text_model` in its weights' names, as the published files have.
OLDER = ("optimum-onnx",)


def worker_environment(threads: int) -> dict[str, str]:
    """Of every tool; OpenMP is told the number before it starts."""
    return {**os.environ, **WORKER, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def job_of(
    model: Model, threads: int, source: Path, bundle: Path, converted: Path, flags: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What worker.py is given; paths are relative to the root, so that no error names this machine's."""
    request = {key: value for key, value in asdict(model).items() if key not in ("name", "shape", "rounds", "variants")}
    return {
        "source": _shown(source), "bundle": _shown(bundle), "converted": _shown(converted), "threads": threads,
        "flags": list(flags), "request": {**request, "seed": SEED},
    }  # fmt: skip


def source_of(model: Model, work: Path) -> Path:
    """The checkpoint: of a shipped model where it lies, of a random one where it is written now."""
    if model.shape is None:
        from models.shipped import shipped_checkpoints

        return shipped_checkpoints()[model.name]
    source = work / model.name / "source"
    if not source.exists():
        _run([sys.executable, "-m", "benchmarks.random_checkpoint", model.shape, "--output", str(source)])
    return source


def source_for(environment: str, model: Model, source: Path, work: Path) -> Path:
    """The checkpoint as an environment's transformers reads it: a copy with other names for the older one."""
    if environment not in OLDER or model.kind == "dit" or model.shape is not None:
        return source  # random checkpoints have the published names
    copy = work / model.name / "source-published-names"
    if not copy.exists():
        with_published_names(source, copy)
    return copy


def bundle_of(model: Model, variant: Variant, source: Path, work: Path, threads: int, latentc: Path) -> Path:
    """The bundle with built engines, exported once for each set of flags; RuntimeError with the export's own line.

    Made again when the flags, the compiler or the runtime have changed.
    """
    size = ("--size", f"{model.pixels}x{model.pixels}") if model.kind != "dit" else ()
    steps = ",".join(map(str, sorted({4, model.steps})))
    flags = ["--steps", steps, *size, *variant.export]
    bundle = work / model.name / "-".join(["bundle", *(flag.lstrip("-") for flag in variant.export)])
    rooms = [path for room in ("export", "models", "runtime") for path in sorted((ROOT / room).rglob("*.py"))]
    digest = hashlib.sha256(b"\0".join([*(path.read_bytes() for path in rooms), " ".join(flags).encode()])).hexdigest()
    stamp = bundle.with_suffix(".made")
    if not (bundle / "manifest.json").is_file() or not stamp.is_file() or stamp.read_text() != digest:
        shutil.rmtree(bundle, ignore_errors=True)
        bundle.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "export", str(source), "--output", str(bundle), *flags])
        stamp.write_text(digest, encoding="utf-8")
    # Up to date engines are left as they are.
    _run([str(latentc), "build", str(bundle), "--backend", "onnxruntime", "--threads", str(threads)])
    return bundle


def converted(tool: str, python: Path, job: dict[str, Any]) -> None:
    """What a peer makes of the checkpoint in its own environment, once; RuntimeError with its own line.

    A failure is kept, too: it takes as long as a success, and would fail the same way.
    """
    target = ROOT / job["converted"]
    failed = target.with_suffix(".failed")
    if target.exists():
        return
    if failed.is_file():
        raise RuntimeError(failed.read_text(encoding="utf-8"))
    staged = target.with_suffix(".partial")  # so that what was interrupted is not taken for whole
    shutil.rmtree(staged, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "benchmarks.cpu.worker", tool]
    command += [json.dumps(job | {"converted": _shown(staged)}), "--convert"]
    env = worker_environment(job["threads"])
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        shutil.rmtree(staged, ignore_errors=True)
        said = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["it said nothing"]
        reason = json.loads(said[-1])["error"] if said[-1].startswith("{") else said[-1]
        failed.write_text(reason, encoding="utf-8")
        raise RuntimeError(reason)
    staged.replace(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | CHECKOUT, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"ended with code {done.returncode}"]
        raise RuntimeError(lines[-1].replace(f"{ROOT}{os.sep}", ""))


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
