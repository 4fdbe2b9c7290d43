"""A bundle without its weights, for a GPU machine that takes files only in small loads. Needs no torch.

    python -m benchmarks.gpu.carry pack build/gpu-peers/dit-256 build/carry/dit-256        where the bundle is
    python -m benchmarks.gpu.carry unpack build/carry/dit-256 build/dit-256                where the GPU is

`unpack` fills the weights' files with seeded random numbers, each tensor at the scale of its inputs, and seals the
bundle anew. Its time, memory and engines are the real ones, its pictures are not, and `latentc verify` fails on it, as
it must. Whole numbers (indices, shapes) travel as they are.
"""

import argparse
import hashlib
import math
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
from latentc.backends.tensorrt.onnx_file import Initialiser, read_onnx
from latentc.bundle import MANIFEST, open_bundle
from latentc.schema import FileRecord, Manifest

FLOATS = {1: np.float32, 10: np.float16}  # ONNX's numbers of element types
KEPT = "kept.bin"  # what does not lie in floats, one file after the other


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=__doc__.splitlines()[0])
    result.add_argument("what", choices=["pack", "unpack"])
    result.add_argument("source", type=Path)
    result.add_argument("target", type=Path)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Packs or unpacks, and says how large the result is."""
    options = parser().parse_args(arguments)
    (pack if options.what == "pack" else unpack)(options.source, options.target)
    total = sum(path.stat().st_size for path in options.target.rglob("*") if path.is_file())
    print(f"{options.target}: {total / 1e6:.1f} MB", file=sys.stderr)


def pack(source: Path, target: Path) -> None:
    """Everything but the engines and the floats of the weights."""
    bundle = open_bundle(source)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("engines", "*.weights"))
    kept = bytearray()
    for name, graph in bundle.manifest.graphs.items():
        weights = bundle.view(graph.weights)
        for tensor in _outside(bundle.view(graph.file), name):
            if tensor.data_type not in FLOATS:
                kept += weights[tensor.offset : tensor.offset + _length(tensor)]
    (target / KEPT).write_bytes(kept)


def unpack(source: Path, target: Path) -> None:
    """The bundle again, with other numbers."""
    manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(KEPT))
    kept, position = (source / KEPT).read_bytes(), 0
    files = dict(manifest.files)
    rng = np.random.default_rng(0)
    for name, graph in manifest.graphs.items():
        path = target / graph.weights
        with path.open("wb") as file:
            file.truncate(manifest.files[graph.weights].num_bytes)
            for tensor in _outside(memoryview((target / graph.file).read_bytes()), name):
                file.seek(tensor.offset)
                if tensor.data_type in FLOATS:
                    file.write(_drawn(rng, tensor).tobytes())
                else:
                    file.write(kept[position : position + _length(tensor)])
                    position += _length(tensor)
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 24):
                digest.update(chunk)
        files[graph.weights] = FileRecord(sha256=digest.hexdigest(), num_bytes=path.stat().st_size)
    data = msgspec.json.encode(msgspec.structs.replace(manifest, files=files))
    (target / MANIFEST).write_bytes(data)
    (target / f"{MANIFEST}.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n")


def _outside(model: memoryview, name: str) -> list[Initialiser]:
    """The tensors of a graph that lie in its weights' file."""
    return [tensor for tensor in read_onnx(model, name).initialisers if tensor.location is not None]


def _length(tensor: Initialiser) -> int:
    assert tensor.length is not None, f"{tensor.name} does not say how long it is"
    return tensor.length


def _drawn(rng: np.random.Generator, tensor: Initialiser) -> np.ndarray:
    """Normal numbers that keep the size of what they are multiplied with."""
    inputs = max(1, math.prod(tensor.dims[1:]) if len(tensor.dims) > 2 else min(tensor.dims, default=1))
    values = rng.standard_normal(math.prod(tensor.dims), np.float32)
    values *= np.float32(inputs**-0.5)
    return values.astype(FLOATS[tensor.data_type])


if __name__ == "__main__":
    main()
