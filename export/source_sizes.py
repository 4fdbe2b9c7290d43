"""How many numbers a source holds, from the headers of its safetensors files: no weight is read.

A header is a stranger's JSON: its size is bounded, and what it says of shapes and places must fit the file's size.
Format: 8 bytes little-endian length, then JSON {name: {dtype, shape, data_offsets}}, then the data
(https://github.com/huggingface/safetensors#format).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from models.latent_diffusion import SourceError
from models.weights import is_read, read_object

MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
_DTYPES = {1: "BOOL U8 I8 F8_E4M3 F8_E5M2", 2: "U16 I16 F16 BF16", 4: "U32 I32 F32", 8: "U64 I64 F64"}
_BYTES = {dtype: num_bytes for num_bytes, dtypes in _DTYPES.items() for dtype in dtypes.split()}
# What a pipeline may bring that no graph is made of.
_NOT_EXPORTED = frozenset({"safety_checker", "image_encoder", "feature_extractor"})
# Of an autoencoder that only decodes.
_ENCODER = ("encoder.", "quant_conv.")


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor."""

    dtype: str  # as safetensors names it: F32, F16, BF16 …
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class SourceSizes:
    """Of all components that graphs are made of: sums and the largest tensor, by component's folder."""

    parameters: Mapping[str, int]
    stored_bytes: Mapping[str, int]
    largest: Mapping[str, int]  # elements

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def largest_parameter(self) -> int:
        """Elements of the largest tensor of all."""
        return max(self.largest.values(), default=0)


def source_sizes(directory: Path, *, img2img: bool) -> SourceSizes:
    """Sizes of a diffusers directory. The autoencoder's encoder counts only with `img2img`. Raises SourceError."""
    found: dict[str, list[StoredTensor]] = {}
    for component, value in read_object(directory / "model_index.json").items():
        if not isinstance(value, list) or component in _NOT_EXPORTED or not (directory / component).is_dir():
            continue
        files = [path for path in sorted((directory / component).glob("*.safetensors")) if is_read(path)]
        tensors = [(name, tensor) for path in files for name, tensor in stored_tensors(path).items()]
        drawn = [t for name, t in tensors if img2img or component != "vae" or not name.startswith(_ENCODER)]
        if drawn:
            found[component] = drawn
    return SourceSizes(
        parameters={name: sum(t.num_elements for t in tensors) for name, tensors in found.items()},
        stored_bytes={name: sum(t.num_bytes for t in tensors) for name, tensors in found.items()},
        largest={name: max(t.num_elements for t in tensors) for name, tensors in found.items()},
    )


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name. Raises SourceError for a header that cannot be true."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise SourceError(f"{path}: no safetensors file, or only the beginning of one; fetch it again")
        header = file.read(header_bytes)
    data_bytes = file_bytes - 8 - header_bytes
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries = {n: msgspec.json.decode(entry, type=_Entry) for n, entry in raw.items() if n != "__metadata__"}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: its header is damaged ({error}); fetch the file again") from None
    return {name: _checked(path, name, entry, data_bytes) for name, entry in entries.items()}


def _checked(path: Path, name: str, entry: _Entry, data_bytes: int) -> StoredTensor:
    begin, end = entry.data_offsets
    if entry.dtype not in _BYTES:
        raise SourceError(f"{path}: {name!r} has the dtype {entry.dtype!r}; {', '.join(_BYTES)} are read")
    num_bytes = math.prod(entry.shape) * _BYTES[entry.dtype]
    if min(entry.shape, default=0) < 0 or not 0 <= begin <= end <= data_bytes or end - begin != num_bytes:
        raise SourceError(
            f"{path}: {name!r} of shape {list(entry.shape)} cannot lie at {begin}…{end} of {data_bytes} bytes; fetch "
            "the file again"
        )
    return StoredTensor(entry.dtype, entry.shape, num_bytes)
