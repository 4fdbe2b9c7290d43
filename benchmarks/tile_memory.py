"""The memory that a picture's decoder takes, whole and by tiles: `latentc sample` in a process of its own for each row.

    python -m benchmarks.tile_memory [--side 1024] [--tiles 512,256]

A Stable Diffusion pipeline with random weights: the published VAE (84 M parameters, its attention over all latents
included), and a denoiser so small that the decoder decides the peak. A second solver step would change nothing, so
there are two. Each row is run with `--memory normal` and `low`; peaks are the kernel's high-water mark of the process,
which the interpreter and the libraries are part of. Linux only.

Writes benchmarks/results/tile_memory.json.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from latentc.memory import MEMORY

from benchmarks.machine import machine
from benchmarks.process_tree import run_watched
from benchmarks.published_shapes import vae
from benchmarks.random_checkpoint import drawn_tensors
from benchmarks.random_weights import NormalPool, write_sharded
from export.pipeline import ExportOptions, export_bundle
from tests.pipelines.stable_diffusion import make_stable_diffusion, random_unet

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "tile_memory.json"
SAMPLE_SIZE = 64  # latents of 512²: the bundle then draws up to 1024²


def write_source(directory: Path) -> Path:
    """The tests' pipeline with the published VAE, and attention below the full resolution only."""
    make_stable_diffusion(directory)
    unet = random_unet(
        sample_size=SAMPLE_SIZE,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    unet.save_pretrained(directory / "unet")
    with torch.device("meta"):
        wide = vae(4, 0.18215)
    for file in (directory / "vae").iterdir():
        file.unlink()
    wide.save_config(directory / "vae")
    stem = "diffusion_pytorch_model"
    write_sharded(directory / "vae", stem, drawn_tensors(wide), torch.float32, 10**10, NormalPool(0))
    return directory


def measured(bundle: Path, side: int, tile: int | None, memory: str) -> dict[str, Any]:
    """One picture by the command, in a process of its own."""
    flags = ["-p", "a red heart", "-W", str(side), "-H", str(side), "-s", "7", "--steps", "2", "--cfg-scale", "1"]
    command = [sys.executable, "-m", "latentc.cli", "sample", str(bundle), *flags, "--memory", memory, "--json"]
    command += ["--backend", "onnxruntime", "-o", str(bundle.parent / "out.png")]
    command += [] if tile is None else ["--tile", str(tile)]
    run = run_watched(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT / "runtime")})
    if run.status != 0:
        raise SystemExit(f"tile {tile}, memory {memory}: {run.said[-1]}")
    report = json.loads(run.said[-1])
    return {
        "side": side,
        "tile": tile,
        "memory": memory,
        "peak_bytes": run.peak.hwm,
        "anonymous_bytes": run.peak.anon,
        "decode_ms": round(report["timings_ms"]["decode"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the bundle, draws every row, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tile_memory")
    parser.add_argument("--side", type=int, default=1024, metavar="PIXELS", help="of the picture, at most 1024")
    parser.add_argument("--tiles", default="512,256", metavar="N,N,…")
    given = parser.parse_args(arguments)
    tiles = [None, *(int(tile) for tile in given.tiles.split(","))]
    with tempfile.TemporaryDirectory() as home:
        source, bundle = write_source(Path(home) / "source"), Path(home) / "bundle"
        export_bundle(ExportOptions(source=str(source), output=bundle, steps=(2,), memory_bytes=1))
        rows = []
        for memory in MEMORY:
            for tile in tiles:
                rows.append(measured(bundle, given.side, tile, memory))
                print(json.dumps(rows[-1]), file=sys.stderr)
    document = {"machine": machine(), "rows": rows}
    RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
