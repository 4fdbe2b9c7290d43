"""Random weights of any size, written to sharded safetensors one piece of one tensor at a time.

Drawing a normal number for each of 12 billion weights takes minutes. So one pool of normal numbers is drawn once, and
each tensor takes a cyclic run of it, from an offset of its own and times a scale of its own. The pool's length is a
prime: no two rows of a matrix are equal, and no two tensors. What is never in memory is a whole tensor.

Scales keep a signal's size from layer to layer, so that activations stay of order one through 57 blocks, in float16
too: weights are N(0, 1 / fan-in), norms are about one, adaLN's gates and tables are not zero, and every input matters.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn

from benchmarks.disk_rate import written_through

POOL = 16_777_213  # the largest prime below 2^24: 64 MiB of float32
PIECE = 2**22  # numbers that are scaled, cast and written at a time
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True)
class Drawn:
    """One tensor: `mean` + `deviation` · normal numbers, or the rows of `given` (float32, as they are)."""

    shape: tuple[int, ...]
    deviation: float = 0.0
    mean: float = 0.0
    given: Iterator[Tensor] | None = None


class NormalPool:
    """Normal numbers that are drawn once, in float32."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))

    def pieces(self, name: str, count: int) -> Iterator[Tensor]:
        """`count` of them in pieces of at most PIECE, from the offset that belongs to `name`."""
        offset = zlib.crc32(f"{self.seed}/{name}".encode()) % POOL
        while count:
            length = min(PIECE, count, POOL - offset)
            yield self.numbers[offset : offset + length]
            count -= length
            offset = (offset + length) % POOL


def draws(module: nn.Module, gains: Mapping[str, float]) -> dict[str, Drawn]:
    """What each tensor of a module's state dict is drawn from, tied ones once; the module may be on the meta device.

    `gains` multiplies the weights whose names hold a key. Raises ValueError for a buffer: it holds no weights.
    """
    known = {id(tensor): name for name, tensor in reversed(list(module.state_dict(keep_vars=True).items()))}
    found = {}
    for prefix, child in module.named_modules():
        for name, parameter in child.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if known.get(id(parameter)) == full:
                gain = math.prod(factor for part, factor in gains.items() if part in full)
                found[full] = _drawn(child, name, tuple(parameter.shape), gain)
    left = {name for name in known.values() if name not in found}
    if left:
        raise ValueError(f"{type(module).__name__}: {', '.join(sorted(left))} is no parameter; give its numbers")
    return found


def _drawn(layer: nn.Module, name: str, shape: tuple[int, ...], gain: float) -> Drawn:
    if isinstance(layer, nn.Embedding):
        return Drawn(shape, 0.7 * gain)
    if name == "weight" and len(shape) > 1:
        return Drawn(shape, gain / math.sqrt(math.prod(shape[1:])))  # over what one output reads
    if name == "weight":
        return Drawn(shape, 0.1, gain)  # of norms
    return Drawn(shape, 0.3 if len(shape) > 1 else 0.1)  # adaLN's tables; biases


def write_sharded(
    directory: Path, stem: str, tensors: Mapping[str, Drawn], dtype: torch.dtype, shard_bytes: int, pool: NormalPool
) -> None:
    """STEM.safetensors, or its shards with their index, split and named as diffusers and transformers do it."""
    empty = {name: torch.empty(drawn.shape, dtype=dtype, device="meta") for name, drawn in tensors.items()}
    split = split_torch_state_dict_into_shards(
        empty, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=shard_bytes
    )
    directory.mkdir(parents=True, exist_ok=True)
    for file, names in split.filename_to_tensors.items():
        _write_file(directory / file, {name: tensors[name] for name in sorted(names)}, dtype, pool)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_file(path: Path, tensors: Mapping[str, Drawn], dtype: torch.dtype, pool: NormalPool) -> None:
    """https://github.com/huggingface/safetensors#format, with names in order as the package writes them."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, drawn in tensors.items():
        end = position + math.prod(drawn.shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(drawn.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with written_through(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, drawn in tensors.items():
            for piece in _pieces(name, drawn, pool):
                # numpy has no bfloat16: its bytes are all that is wanted
                file.write(piece.to(dtype).view(torch.uint8).numpy())
        assert file.tell() == 8 + len(encoded) + position, f"{path.name}: a tensor has another size than its shape"


def _pieces(name: str, drawn: Drawn, pool: NormalPool) -> Iterator[Tensor]:
    if drawn.given is not None:
        yield from (rows.reshape(-1) for rows in drawn.given)
        return
    for numbers in pool.pieces(name, math.prod(drawn.shape)):
        piece = numbers * drawn.deviation
        yield piece.add_(drawn.mean) if drawn.mean else piece
