"""Export memory and time against the number of parameters: latentc beside optimum-onnx's exporter, same checkpoints.

    python3.11 -m venv PEER && PEER/bin/pip install -r benchmarks/peers/optimum-onnx.txt
    python -m benchmarks.export_peers --peer PEER [--only flux sd3 dit] [--limit-gb 18] [--work DIR]

For each model of a growing series the checkpoint is written once, exported by both one after the other, each in a
process that is watched from outside, and removed. What holds more than the limit is killed ("out of memory"), and that
tool is not tried on larger models of the series. Both run as their documentation says:

    python -m export SOURCE --output BUNDLE --precision fp16 --steps 4
    optimum-cli export onnx --model SOURCE --task text-to-image --dtype fp16 --atol 0.1 OUTPUT

Both compare what they wrote with torch, as they do by default. The peer's own bound of 1e-5 does not hold in float16,
and optimum-onnx 0.1.0 raises an IndexError where it would say so; hence --atol. Its example inputs are as small as its
flags allow (`--batch_size 1 --sequence_length 16 --height 16 --width 16`), and the series has a small VAE: in float16
on a CPU torch takes minutes for the convolutions of the real one, which would say nothing about an exporter. Parameters
are those of the whole checkpoint, text encoders and VAE included.

Writes benchmarks/results/export_peers.json after each export, and docs/images/export_peers.svg with PEER's matplotlib.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.disk_rate import drop_pages
from benchmarks.export_at_size import ROOT, bytes_of, make_source, run_export
from benchmarks.machine import machine
from benchmarks.process_tree import Run, run_watched

RESULTS = Path(__file__).parent / "results" / "export_peers.json"
PICTURE = ROOT / "docs" / "images" / "export_peers.svg"
PLOT = Path(__file__).parent / "peers" / "plot_export.py"
SERIES = {
    "flux": ("flux-1", "flux-2", "flux-3", "flux-4", "flux-6", "flux-8", "flux-16"),
    "sd3": ("sd3-2", "sd3-4", "sd3-8", "sd3-16", "sd3-32"),
    "dit": ("dit-s-2", "dit-b-2", "dit-l-2", "dit-xl-2"),
}
TOOLS = ("latentc", "optimum-onnx")
SMALL_EXAMPLE = ("--batch_size", "1", "--sequence_length", "16", "--height", "16", "--width", "16")
HALF_ATOL = "0.1"
PACKAGES = ("optimum-onnx", "optimum", "transformers", "diffusers", "torch", "onnx", "onnxruntime")


def exported(tool: str, peer: Path, source: Path, output: Path, half: bool, limit_bytes: int) -> Run:
    """One export by one tool; a model that is stored in float32 is exported in float32."""
    if tool == "latentc":
        precision = ("--precision", "fp16") if half else ()
        return run_export(source, output, (*precision, "--steps", "4"), limit_bytes=limit_bytes)
    command = [
        str(peer / "bin" / "optimum-cli"), "export", "onnx", "--model", str(source), "--task", "text-to-image",
        *(("--dtype", "fp16", "--atol", HALF_ATOL) if half else ()), *SMALL_EXAMPLE, str(output),
    ]  # fmt: skip
    return run_watched(command, cwd=source.parent, env={"HF_HUB_OFFLINE": "1"}, limit_bytes=limit_bytes)


def row_of(tool: str, model: str, made: dict[str, Any], run: Run, output: Path) -> dict[str, Any]:
    """What one export showed; paths of this machine are left out of its last words."""
    status = "ok" if run.status == 0 else "out of memory" if run.stopped else "failed"
    errors = [line for line in run.said if "Error" in line] if status == "failed" else []
    said = errors[-1] if errors else ""
    return {
        "tool": tool,
        "model": model,
        "parameters": made["parameters"],
        "source_bytes": made["bytes"],
        "status": status,
        "message": (run.stopped or said.replace(str(output.parent), "."))[:300],
        "seconds": round(run.seconds, 1),
        "peak_bytes": asdict(run.peak),
        "phases": {name: asdict(phase) for name, phase in run.phases.items()},
        "output_bytes": bytes_of(output) if output.exists() else 0,
    }


def versions(peer: Path) -> dict[str, str]:
    """Of the packages in the peer's environment."""
    script = f"import json, importlib.metadata as m; print(json.dumps({{p: m.version(p) for p in {PACKAGES!r}}}))"
    done = subprocess.run([str(peer / "bin" / "python"), "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def measured(model: str, tools: Sequence[str], peer: Path, work: Path, limit_bytes: int) -> list[dict[str, Any]]:
    """One checkpoint, exported by each tool in turn."""
    with tempfile.TemporaryDirectory(prefix=f"latentc-{model}-", dir=work) as directory:
        source, output = Path(directory) / "source", Path(directory) / "output"
        made = make_source(model, source)
        rows = []
        for tool in tools:
            drop_pages(source)
            run = exported(tool, peer, source, output, not model.startswith("dit"), limit_bytes)
            rows.append(row_of(tool, model, made, run, output))
            print(json.dumps(rows[-1]), file=sys.stderr)
            for path in Path(directory).iterdir():
                if path != source:
                    shutil.rmtree(path)
        return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the series, and prints one JSON document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_peers")
    parser.add_argument("--peer", metavar="PEER", type=Path, required=True, help="the peer's virtual environment")
    parser.add_argument("--only", nargs="+", metavar="SERIES", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these of the series")
    parser.add_argument("--tools", nargs="+", metavar="TOOL", choices=TOOLS, default=list(TOOLS))
    parser.add_argument(
        "--limit-gb", metavar="GB", type=float, default=18.0, help="a process that holds more is killed"
    )
    parser.add_argument("--work", metavar="DIR", type=Path, default=Path(tempfile.gettempdir()), help="a large disk")
    parser.add_argument("--results", metavar="FILE", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    peer = given.peer.absolute()  # and not resolved: a virtual environment's python is a link
    document = json.loads(given.results.read_text(encoding="utf-8")) if given.results.is_file() else {"rows": []}
    for series in given.only:
        tools = list(given.tools)
        for model in SERIES[series]:
            if not tools or (given.models and model not in given.models):
                continue
            for row in measured(model, tools, peer, given.work, int(given.limit_gb * 1e9)):
                same = [(old["tool"], old["model"]) != (row["tool"], row["model"]) for old in document["rows"]]
                document["rows"] = [old for old, keep in zip(document["rows"], same, strict=True) if keep] + [row]
                if row["status"] != "ok":
                    tools.remove(row["tool"])
            document |= {
                "command": "python -m benchmarks.export_peers --peer PEER", "limit_gb": given.limit_gb,
                "machine": machine(), "peer_versions": versions(peer),
            }  # fmt: skip
            given.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if given.results == RESULTS:
        subprocess.run([str(peer / "bin" / "python"), str(PLOT), str(given.results), str(PICTURE)], check=True)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
