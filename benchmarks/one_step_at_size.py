"""One real step of a large bundle's denoiser on this CPU, beside torch, which reads the same weights block by block.

    python -m benchmarks.one_step_at_size BUNDLE --source DIR [--size 256x256] [--threads 0]

The runtime draws as `latentc sample --memory low` does: text encoders, prompt and schedule graph, and the first call of
the loop, each from weights that stay mapped. torch is given the same token ids, noise and table row, and the source's
own safetensors, of which it holds one layer at a time in float32 (models/stored_weights.py). Each runs in a process of
its own that is watched from outside. FLUX needs a table of the size: export with `--size 1024x1024 --size 256x256`.

Writes benchmarks/results/one_step_at_size.json; exits with 1 if the two are further apart than the bundle's own bound.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from latentc.bundle import manifest_of
from latentc.parity import relative_l2
from latentc.prologue import run_prologue
from latentc.request import Asked, resolve
from latentc.schema import LabelConditioning
from latentc.session import open_session, trajectory_of_request
from latentc.trajectory import Trajectory

from benchmarks.disk_rate import drop_pages
from benchmarks.export_at_size import ENVIRONMENT, ROOT
from benchmarks.machine import machine
from benchmarks.process_tree import run_watched

RESULTS = Path(__file__).parent / "results" / "one_step_at_size.json"
PROMPT = "a photograph of an astronaut riding a horse on the moon, golden hour, film grain"
SEED = 7


def runtime_step(bundle_path: Path, output: Path, size: tuple[int, int], threads: int) -> None:
    """The first call of the loop; writes what it was given and what it returned to `output` (npz)."""
    with phase("open"):
        session = open_session(bundle_path, "onnxruntime", threads, memory="low")
    bundle, backend = session.bundle, session.backend
    conditioning = bundle.manifest.conditioning
    label = min(conditioning.labels) if isinstance(conditioning, LabelConditioning) else None
    asked = Asked(label=label, prompts=() if label else (PROMPT,), width=size[0], height=size[1])
    request = resolve(bundle.manifest, asked)
    trajectory = trajectory_of_request(bundle, request, SEED, tokenizers=session.tokenizers)
    with phase("texts and schedule"):
        prepared = run_prologue(backend, session.engines, bundle.manifest, trajectory)
    history = backend.buffer((len(trajectory.output_row), *trajectory.noise.shape[1:]), np.float32)
    history.view(0).write(trajectory.noise[0])
    with phase("load"):
        engine = session.engines["denoise"]
    for name, buffer in {"history": history, **prepared.constant}.items():
        engine.bind(name, buffer)
    for name, rows in prepared.per_call.items():
        engine.bind(name, rows.view(0))
    prediction = backend.buffer(tuple(trajectory.noise.shape[1:]), np.float32)
    engine.bind("prediction", prediction)
    with phase("step"):
        engine.run()
        found = prediction.read()
    np.savez(output, prediction=found, history=history.read(), **_given(trajectory))  # type: ignore[arg-type]


def _given(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """What a first call depends on, before any graph ran."""
    arrays = {f"call/{name}": rows[0] for name, rows in trajectory.per_call.items()}
    arrays |= {f"constant/{name}": values for name, values in trajectory.constant.items()}
    for number, batch in enumerate(trajectory.texts):
        places = [(row, *place) for row, found in enumerate(batch.places) for place in found]
        arrays |= {
            f"text/{number}/{batch.graph}/input_ids": batch.input_ids,
            f"text/{number}/{batch.graph}/attention_mask": batch.attention_mask,
            f"text/{number}/{batch.graph}/places": np.array(places),
        }
    return arrays


def torch_step(source: Path, given: Path, output: Path) -> None:
    """The same call by the source's own modules in float32, which read their weights as they are called."""
    import torch

    from export.step import fuse_step
    from models.components import only_errors
    from models.families import FAMILIES
    from models.weights import read_object

    only_errors()
    arrays = dict(np.load(given))
    with phase("open"):
        model = FAMILIES[read_object(source / "model_index.json")["_class_name"]].load(source)
    known = {name.partition("/")[2]: torch.from_numpy(v) for name, v in arrays.items() if name.startswith("constant/")}
    shape = arrays["call/timestep"].shape  # branches, batch
    with torch.no_grad():
        with phase("texts"):
            for key in [name.removesuffix("/places") for name in arrays if name.endswith("/places")]:
                encoder = next(e for e in model.text_encoders if e.name == key.split("/")[2])
                names = ("input_ids", "attention_mask") if encoder.takes_mask else ("input_ids",)
                outputs = encoder.module(*(torch.from_numpy(arrays[f"{key}/{name}"]) for name in names))
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                for name, rows in zip(encoder.outputs, outputs, strict=True):
                    values = known.setdefault(name, torch.zeros(*shape, *rows.shape[1:], dtype=rows.dtype))
                    for row, branch, image in arrays[f"{key}/places"]:
                        values[branch, image] = rows[row]
        step = fuse_step(model).denoise
        call = [torch.from_numpy(arrays[name]) for name in ("history", "call/input_row", "call/timestep")]
        conditioning = [known[name] for name in model.conditioning]
        with phase("step"):
            prediction = step(*call, known["guidance_weights"], *conditioning)
    np.savez(output, prediction=prediction.numpy())


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Says how long the block took, as the watcher reads it (benchmarks/process_tree.py)."""
    start = time.perf_counter()
    yield
    print(f"{name}   {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def compared(bundle: Path, source: Path, size: str, threads: int) -> dict[str, Any]:
    """Runs both in processes of their own."""
    bound = _bound(bundle)
    document: dict[str, Any] = {"size": size, "threads": threads}
    with tempfile.TemporaryDirectory(prefix="latentc-step-") as directory:
        files = {"runtime": Path(directory) / "runtime.npz", "torch": Path(directory) / "torch.npz"}
        for part, file in files.items():
            drop_pages(bundle if part == "runtime" else source)
            command = [
                sys.executable, "-m", "benchmarks.one_step_at_size", str(bundle), "--source", str(source),
                "--size", size, "--threads", str(threads),
                "--part", part, "--output", str(file), "--given", str(files["runtime"]),
            ]  # fmt: skip
            run = run_watched(command, cwd=ROOT, env=ENVIRONMENT)
            if run.status != 0:
                raise SystemExit(f"{part} failed ({run.status}):\n" + "\n".join(run.said))
            document[part] = {
                "seconds": round(run.seconds, 1),
                "peak_bytes": asdict(run.peak),
                "phases": {name: asdict(found) for name, found in run.phases.items()},
            }
        predictions = [np.load(file)["prediction"] for file in files.values()]
    deviation = float(predictions[1].std())
    return document | {
        "relative_l2": relative_l2(*predictions), "bound": bound, "deviation_of_the_output": deviation,
    }  # fmt: skip


def _bound(bundle: Path) -> float:
    """The bundle's own, of its denoiser."""
    figures = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))["figures"]
    return max(float(figure["bound"]) for figure in figures if figure["tensor"] == "denoise/prediction")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, and prints one JSON document; with --part it is one of the two processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_step_at_size")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--source", metavar="DIR", type=Path, required=True, help="what the bundle was exported from")
    parser.add_argument("--size", metavar="WxH", default="256x256")
    parser.add_argument("--threads", metavar="N", type=int, default=0)
    parser.add_argument("--results", metavar="FILE", type=Path, default=RESULTS)
    for hidden in ("--part", "--output", "--given"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    width, height = (int(side) for side in given.size.split("x"))
    if given.part == "runtime":
        return runtime_step(given.bundle, Path(given.output), (width, height), given.threads)
    if given.part == "torch":
        return torch_step(given.source, Path(given.given), Path(given.output))
    manifest, _ = manifest_of(given.bundle)
    document = {
        "command": f"python -m benchmarks.one_step_at_size BUNDLE --source DIR --size {given.size}",
        "pipeline": manifest.pipeline, "precision": manifest.precision,
        "loop_parameters": manifest.graphs["denoise"].parameters,
        **compared(given.bundle, given.source, given.size, given.threads), "machine": machine(),
    }  # fmt: skip
    given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    if not document["relative_l2"] <= document["bound"]:  # NaN is within no bound
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
