"""One tool in a process and an environment of its own: makes its files, draws when it is told to, or draws once.

    python -m benchmarks.cpu.worker TOOL JOB                    one line of JSON when ready, one for each request
    python -m benchmarks.cpu.worker TOOL JOB --convert          makes what the tool runs from (ONNX, IR), nothing else
    python -m benchmarks.cpu.worker TOOL JOB --once PNG         the first picture of a new process, and its end

    JOB      {"source", "bundle", "converted", "threads", "flags", "request": {"kind", "label" or "prompt", …}}
    ready    {"what": …, "versions": {…}, "load_s": …}  or  {"error": …}
    request  {"seed", "count", "save"}, of which `save` is null or where the pictures go (npy, float32 [B, H, W, 3])
    answer   {"request_ms", "prologue_ms", "step_ms": [… one of each step], "decode_ms"}  or  {"error": …}

A request begins before texts are tokenised, and ends with the pictures on the host, in float32. A step begins when the
denoiser is called, and ends when it is called again, or the decoder is. This module imports nothing but the standard
library before the tool is known: an environment has what its tool needs, and no more.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What a loaded tool is: what it calls itself, and a function of (seed, count, number of steps) to (pictures, timings).
Job = Mapping[str, Any]
Draw = Callable[[int, int, int], tuple[Any, dict[str, Any]]]
PACKAGES = (
    "latentc", "onnxruntime", "numpy", "torch", "diffusers", "transformers", "openvino", "optimum-intel",
    "optimum-onnx",
)  # fmt: skip
MAX_ERROR = 300


def main(arguments: list[str] | None = None) -> None:
    """Loads, and answers until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu.worker")
    parser.add_argument("tool")
    parser.add_argument("job", type=json.loads)
    parser.add_argument("--convert", action="store_true")
    parser.add_argument("--once", metavar="PNG")
    given = parser.parse_args(arguments)
    # What a tool prints on its own must not come between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        if given.convert:
            return convert(given.tool, given.job)
        begin = time.perf_counter()
        what, draw = load(given.tool, given.job)
        load_s = time.perf_counter() - begin
        if given.once is not None:
            return draw_once(draw, given.job, given.once)
    except Exception as error:  # whatever a tool fails with is its result
        answers.write(json.dumps({"error": described(error)}) + "\n")
        sys.exit(1)
    answers.write(json.dumps({"what": what, "versions": versions(), "load_s": load_s}) + "\n")
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            pictures, timings = draw(asked["seed"], asked["count"], given.job["request"]["steps"])
            if asked.get("save"):
                import numpy as np

                np.save(asked["save"], np.asarray(pictures, np.float32))
            answers.write(json.dumps(timings) + "\n")
        except Exception as error:
            answers.write(json.dumps({"error": described(error)}) + "\n")
    return None


def load(tool: str, job: Job) -> tuple[str, Draw]:
    """The tool, ready to draw."""
    if tool.startswith("latentc"):
        from benchmarks.cpu.latentc_tool import load_latentc

        return load_latentc(job)
    from benchmarks.cpu import diffusers_tool

    if tool == "diffusers":
        return diffusers_tool.load_eager(job)
    if tool == "torch.compile":
        return diffusers_tool.load_compiled(job)
    if tool == "openvino":
        from benchmarks.cpu.openvino_tool import load_openvino

        return load_openvino(job)
    from benchmarks.cpu import optimum_tool

    return optimum_tool.load_intel(job) if tool == "optimum-intel" else optimum_tool.load_onnx(job)


def convert(tool: str, job: Job) -> None:
    """Writes `converted`, where the tool does not run from the checkpoint itself."""
    if tool == "openvino":
        from benchmarks.cpu.openvino_tool import convert_openvino

        convert_openvino(job)
    elif tool.startswith("optimum"):
        from benchmarks.cpu import optimum_tool

        optimum_tool.convert(tool, job)


def draw_once(draw: Draw, job: Job, path: str) -> None:
    """As a script for one picture would: draws, writes a PNG, and that is all."""
    from PIL import Image

    pictures, _ = draw(job["request"]["seed"], 1, job["request"]["steps"])
    Image.fromarray((pictures[0] * 255).round().clip(0, 255).astype("uint8")).save(path)


def described(error: Exception) -> str:
    """One line, without the directories of this machine."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.replace(f"{Path.cwd()}{os.sep}", "")[:MAX_ERROR]


def versions() -> dict[str, str]:
    """Of what this environment has of PACKAGES."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
