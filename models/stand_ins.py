"""A copy of a component's directory whose large tensors have a shape and no contents: what libraries load for free.

diffusers' and transformers' own from_pretrained reads it, with all that they know of old key names, shards and tied
weights. Its weight files are sparse: a tensor of more than SMALL elements is a hole of float32 zeros that begins with a
mark, a NaN whose payload is the tensor's number. The libraries map the files and copy nothing, so that a parameter is
recognised by its mark afterwards, under whatever name it ended, and becomes a stand-in (models/stored_weights.py).
Smaller tensors are there in full.
"""

import contextlib
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from models.latent_diffusion import SourceError
from models.stored_weights import StoredWeight, read_when_called, set_stored_weight
from models.weights import is_read

SMALL = 1024  # elements: biases and norms of small models, scalars; they are read at once
_QUIET_NAN = 0x7FC00000  # float32; the 22 bits below hold the number of the tensor
_PAYLOAD = 0x003FFFFF
_REAL = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# A mapping that may be written to counts as memory where the kernel does not overcommit: several small ones pass.
_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class StandIns:
    """A directory to call from_pretrained on, and the tensors by their numbers."""

    directory: Path
    weights: Sequence[StoredWeight]

    def adopt(self, component: nn.Module) -> None:
        """Ties what was loaded from `directory` to the source's files; marked buffers are read."""
        for parameter in component.parameters():
            weight = self._marked(parameter.data)
            if weight is not None:
                set_stored_weight(parameter, weight)
        for module in component.modules():
            for name, buffer in module.named_buffers(recurse=False):
                weight = self._marked(buffer)
                if weight is not None:
                    setattr(module, name, weight.read())
        read_when_called(component)

    def _marked(self, tensor: torch.Tensor) -> StoredWeight | None:
        if tensor.numel() <= SMALL or tensor.dtype != torch.float32 or tensor.is_meta:
            return None
        mark = int(tensor.view(torch.int32).view(-1)[0]) & 0xFFFFFFFF
        if mark & ~_PAYLOAD != _QUIET_NAN:
            return None
        weight = self.weights[mark & _PAYLOAD]
        assert math.prod(weight.shape) == tensor.numel(), f"{weight.key} was loaded into another shape"
        return StoredWeight(weight.file, weight.key, tuple(tensor.shape), weight.dtype)


@contextlib.contextmanager
def stand_ins(directory: Path) -> Iterator[StandIns]:
    """`directory`, a component's own, with stand-ins for its weights; the copy goes when the block ends.

    What was mapped from it stays valid. Raises SourceError for a file that is no safetensors file.
    """
    with tempfile.TemporaryDirectory(prefix="latentc-") as parent:
        copy = Path(parent) / directory.name
        copy.mkdir()
        for path in directory.iterdir():
            if path.suffix == ".json" and not path.name.endswith(".safetensors.index.json"):
                shutil.copyfile(path, copy / path.name)
        yield StandIns(copy, _write_weights(directory, copy))


@dataclass(frozen=True)
class _Entry:
    """One tensor of a stand-in file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    contents: bytes  # all of it, or the mark alone
    num_bytes: int


def _write_weights(source: Path, copy: Path) -> list[StoredWeight]:
    weights: list[StoredWeight] = []
    entries: list[_Entry] = []
    for file in _weight_files(source):
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                entries += [_entry(opened, file, key, weights) for key in opened.keys()]  # noqa: SIM118 - no mapping
        except safetensors.SafetensorError as error:
            raise SourceError(f"{file}: {error}; fetch the file again") from error
    stem = "diffusion_pytorch_model" if _is_diffusers(source) else "model"
    groups = _groups(entries)
    index: dict[str, str] = {}
    for number, group in enumerate(groups):
        name = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{number + 1:05}-of-{len(groups):05}.safetensors"
        _write_file(copy / name, group)
        index |= {entry.name: name for entry in group}
    if len(groups) > 1:
        total = sum(entry.num_bytes for entry in entries)
        document = {"metadata": {"total_size": total}, "weight_map": index}
        (copy / f"{stem}.safetensors.index.json").write_text(json.dumps(document), encoding="utf-8")
    return weights


def _entry(opened: Any, file: Path, key: str, weights: list[StoredWeight]) -> _Entry:
    piece = opened.get_slice(key)
    shape, dtype = tuple(piece.get_shape()), piece.get_dtype()
    if dtype not in _REAL:
        values = opened.get_tensor(key).contiguous()
        contents = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
        return _Entry(key, dtype, shape, contents, len(contents))
    if math.prod(shape) <= SMALL:
        contents = opened.get_tensor(key).to(torch.float32).numpy().tobytes()
        return _Entry(key, "F32", shape, contents, len(contents))
    weights.append(StoredWeight(file, key, shape, dtype))
    return _Entry(key, "F32", shape, struct.pack("<I", _QUIET_NAN | len(weights) - 1), 4 * math.prod(shape))


def _groups(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """The tensors of each file."""
    groups: list[list[_Entry]] = [[]]
    num_bytes = 0
    for entry in entries:
        if groups[-1] and num_bytes + entry.num_bytes > _FILE_BYTES:
            groups.append([])
            num_bytes = 0
        groups[-1].append(entry)
        num_bytes += entry.num_bytes
    return groups


def _write_file(path: Path, entries: Sequence[_Entry]) -> None:
    """The safetensors format: the header's length, the header, then the tensors one behind the other."""
    header: dict[str, object] = {}
    offsets = [0]
    for entry in entries:
        offsets.append(offsets[-1] + entry.num_bytes)
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets[-2:]}
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    begin = 8 + len(encoded)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(begin + offsets[-1])
        for entry, offset in zip(entries, offsets, strict=False):
            file.seek(begin + offset)
            file.write(entry.contents)


def _weight_files(directory: Path) -> list[Path]:
    """The files that the libraries read where one file and its shards lie side by side: their rules differ."""
    files = sorted(path for path in directory.glob("*.safetensors") if is_read(path))
    shards = [path for path in files if "-of-" in path.name]
    if 0 < len(shards) < len(files):
        return shards if _is_diffusers(directory) else [path for path in files if path not in shards]
    return files


def _is_diffusers(directory: Path) -> bool:
    return any(path.name.startswith("diffusion_pytorch_model") for path in directory.iterdir())
