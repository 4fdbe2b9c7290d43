"""The compile itself: time by phase and peak memory of `python -m export` on a DiT-XL/2 with random weights.

The whole command runs, verification against the diffusers pipeline included, in a process of its own, whose peak
resident memory the kernel tells.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

from benchmarks.hoisting_dit import dit_net
from benchmarks.hoisting_trace import spread_zeros

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class CompileFigures:
    """One export; the phases are those that it prints."""

    model: str
    source_bytes: int
    bundle_bytes: int
    seconds: float
    phase_seconds: dict[str, float]
    peak_memory_bytes: int


def compile_figures(*, heads: int = 16, head_dim: int = 72, layers: int = 28, size: int = 32) -> CompileFigures:
    """Writes a random DiT with Stable Diffusion's decoder to a temporary directory, and exports it for 4 steps."""
    with tempfile.TemporaryDirectory(prefix="latentc-") as directory:
        source, bundle = Path(directory) / "source", Path(directory) / "bundle"
        _write_source(source, heads=heads, head_dim=head_dim, layers=layers, size=size)
        start = time.perf_counter()
        command = [sys.executable, "-m", "export", str(source), "--output", str(bundle), "--steps", "4"]
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"},
        )  # fmt: skip
        assert process.stderr is not None
        told = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{told}")
        return CompileFigures(
            model=f"DiT, {layers} blocks of {heads * head_dim}, latents of {size}",
            source_bytes=_bytes_of(source),
            bundle_bytes=_bytes_of(bundle),
            seconds=round(time.perf_counter() - start, 1),
            phase_seconds=_phases(told),
            peak_memory_bytes=usage.ru_maxrss * 1024,
        )


def _write_source(directory: Path, *, heads: int, head_dim: int, layers: int, size: int) -> None:
    torch.manual_seed(0)
    net = dit_net(heads=heads, head_dim=head_dim, layers=layers, size=size)
    spread_zeros(net)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=8 * size,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    DiTPipeline(net, vae, DDIMScheduler(clip_sample=False)).save_pretrained(directory)


def _phases(told: str) -> dict[str, float]:
    """`hoist        1.2 s` -> {"hoist": 1.2}, for every line of that form."""
    words = [line.split() for line in told.splitlines()]
    return {line[0]: float(line[1]) for line in words if len(line) == 3 and line[2] == "s"}


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
