"""What some forms of a session give on this CPU: a step's rows, the decoder's layout, the arena.

    python -m export emoji-dit --output build/emoji-dit
    python -m benchmarks.session_forms build/emoji-dit [BUNDLE …] [--repeat 15] [--threads 2]

Every form of a comparison runs in turn, each round in the other order; a ratio is one of medians, with the quartiles of
the ratios round by round. Inputs are noise; bundles are fp32. Writes what it prints to
benchmarks/results/session_forms.json.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from latentc.backends.host import HostBuffer
from latentc.backends.onnxruntime import OnnxRuntimeBackend
from latentc.backends.session_options import session_options
from latentc.bundle import Bundle, GraphBytes, open_bundle
from latentc.dims import evaluated

from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "session_forms.json"
Levels = onnxruntime.GraphOptimizationLevel
# Sizes that are open; all other dims are 1.
_KNOWN = {"latent_height": 32, "latent_width": 32, "grid_height": 8, "grid_width": 8, "slots": 21}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures bundle by bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    onnxruntime.set_default_logger_severity(3)  # one setting of session_options is set anew, which it would mention
    document: dict[str, Any] = {"machine": machine(), "threads": given.threads, "models": {}}
    for root in given.bundles:
        bundle = open_bundle(root)
        found = {
            name: compared(forms, given.repeat)
            for name, forms in forms_of(root, bundle, given.threads).items()
        }  # fmt: skip
        document["models"][bundle.manifest.name] = found
        print(json.dumps(found), file=sys.stderr)
    given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


def forms_of(root: Path, bundle: Bundle, threads: int) -> dict[str, dict[str, Callable[[], object]]]:
    """Comparison -> form -> what runs it once; the first form is what latentc does."""
    loop, decode = (root / bundle.manifest.graphs[name].file for name in ("denoise", "decode"))
    found: dict[str, dict[str, Callable[[], object]]] = {}
    if bundle.manifest.guided:
        one = runner(loop, threads, rows=1)
        found["guidance, 1 picture"] = steps_of(bundle, threads, 1) | {"two calls of one row": lambda: (one(), one())}
    for pictures in (2, 4, 8):
        found[f"step, {pictures} pictures"] = steps_of(bundle, threads, pictures)
    found["decoder's layout"] = {
        "blocked (NCHWc)": runner(decode, threads),
        "as it is (NCHW)": runner(decode, threads, level=Levels.ORT_ENABLE_EXTENDED),
    }
    for name, graph in (("step", loop), ("decoder", decode)):
        found[f"{name}, arena"] = {
            "with": runner(graph, threads, rows=2),
            "without": runner(graph, threads, rows=2, arena=False),
        }
        found[f"{name}, memory pattern and reuse"] = {
            "without": runner(graph, threads, rows=2),
            "with": runner(graph, threads, rows=2, pattern=True),
        }
    return found


def steps_of(bundle: Bundle, threads: int, pictures: int) -> dict[str, Callable[[], object]]:
    """A step by the runtime's own engine, rows apart and not (ADR 0024)."""
    graph, record = bundle.graph("denoise"), bundle.manifest.graphs["denoise"]
    known = _KNOWN | {"batch": pictures, "guidance_branches": 2 if bundle.manifest.guided else 1}
    rng = np.random.default_rng(0)

    def run_with(graph: GraphBytes) -> Callable[[], object]:
        backend = OnnxRuntimeBackend(threads)
        engine = backend.load_graph(graph)
        for spec in (*record.inputs, *record.outputs):
            shape = tuple(evaluated(dim, dict.fromkeys(_names(spec.shape), 1) | known) for dim in spec.shape)
            engine.bind(spec.name, HostBuffer(rng.standard_normal(shape).astype(spec.dtype)))
        return engine.run

    apart, whole = replace(graph, rows=known["guidance_branches"]), replace(graph, rows=0)
    return {"rows on a core each": run_with(apart), "all rows on all cores": run_with(whole)}


def runner(
    graph: Path,
    threads: int,
    rows: int = 1,
    level: Any = Levels.ORT_ENABLE_ALL,
    arena: bool = True,
    pattern: bool = False,
) -> Callable[[], object]:
    """One run of `graph` on noise, outputs in place."""
    options = session_options(threads, optimise=True)
    options.graph_optimization_level = level
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = options.enable_mem_reuse = pattern
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in noise_for(session, rows).items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def noise_for(session: onnxruntime.InferenceSession, rows: int) -> Mapping[str, np.ndarray]:
    """Inputs of one picture: `guidance_branches` are `rows`, sizes that are open are 32, all other dims 1."""
    rng = np.random.default_rng(0)
    known = _KNOWN | {"guidance_branches": rows}
    found = {}
    for spec in session.get_inputs():
        shape = [evaluated(dim, dict.fromkeys(_names(spec.shape), 1) | known) for dim in spec.shape]
        kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}[spec.type]
        found[spec.name] = np.asarray(rng.standard_normal(shape)).astype(kind)
    return found


def _names(shape: Sequence[int | str]) -> list[str]:
    return re.findall(r"[a-z]\w*", " ".join(map(str, shape)))


def compared(forms: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, Any]:
    """The first form against each other one."""
    seconds = {name: np.zeros(1 + repeat) for name in forms}
    for number in range(1 + repeat):
        for name in list(forms)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            forms[name]()
            seconds[name][number] = time.perf_counter() - begin
    first, *others = ((name, values[1:]) for name, values in seconds.items())
    return {
        f"{first[0]} against {name}": {
            "faster_by": float(np.median(values) / np.median(first[1])),
            "quartiles": [float(q) for q in np.percentile(values / first[1], (25, 75))],
            "ms": [float(1e3 * np.median(first[1])), float(1e3 * np.median(values))],
        }
        for name, values in others
    }


if __name__ == "__main__":
    main()
