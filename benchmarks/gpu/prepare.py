"""Where there is no GPU: exports the shipped models, and draws what a GPU is to be compared with. Needs torch.

    python -m benchmarks.gpu.prepare [--target tensorrt-10.3] [--precision fp16] [--output build/gpu]

Writes OUTPUT/NAME (a bundle, in `precision` for `target`), OUTPUT/NAME.npy (pictures of the same seeds from a float32
bundle, drawn by ONNX Runtime on the CPU) and OUTPUT/packages (msgspec and tokenizers, which a machine that reaches no
registry needs beside numpy). The folder is all that match.py and loop.py need: 45 MB for both models.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import tokenizers
from latentc.session import open_session

from benchmarks.gpu.requests import SEEDS, STEPS, request_of

MODELS = ("emoji-dit", "emoji-flux")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu.prepare", description=__doc__.splitlines()[0])
    result.add_argument("--target", default="tensorrt-10.3", help="what the graphs are written for")
    result.add_argument("--precision", default="fp16", choices=["fp16", "fp32"])
    result.add_argument("--output", type=Path, default=Path("build/gpu"))
    result.add_argument("--model", action="append", choices=MODELS, help="default: both")
    return result


def main(arguments: list[str] | None = None) -> None:
    """Exports, draws, copies."""
    options = parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for model in options.model or MODELS:
        bundle = options.output / model
        export(model, bundle, ["--target", options.target, "--precision", options.precision])
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / "fp32"
            export(model, reference, [])
            np.save(bundle.with_suffix(".npy"), expected(reference))
        print(f"{bundle} and {bundle.with_suffix('.npy')}: {len(SEEDS)} pictures")
    packages = options.output / "packages"
    shutil.rmtree(packages, ignore_errors=True)
    for package in (msgspec, tokenizers):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, packages / folder.name, ignore=shutil.ignore_patterns("__pycache__"))


def export(model: str, bundle: Path, flags: list[str]) -> None:
    """As a user does it."""
    command = [sys.executable, "-m", "export", model, "--output", str(bundle), *flags]
    subprocess.run(command, check=True, stdout=sys.stderr)


def expected(bundle: Path) -> np.ndarray:
    """float32 [seeds, 3, height, width]."""
    session = open_session(bundle, "onnxruntime")
    request = request_of(session.bundle.manifest, steps=STEPS)
    return np.concatenate([session.draw(request, seed) for seed in SEEDS])


if __name__ == "__main__":
    main()
