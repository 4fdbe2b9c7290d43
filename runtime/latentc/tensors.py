"""Reads safetensors files, strictly: every byte of the file belongs to the header or to one tensor.

Format: uint64 little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then
the data (https://github.com/huggingface/safetensors#format). The package of that name is not used: its
strictness is ours to state, and it would be one more binary on a device. bfloat16 is not read, since
numpy has no such type and no table needs it.
"""

import math
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from latentc.errors import BundleError

Array: TypeAlias = npt.NDArray[np.generic]

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def tensors_from_bytes(data: memoryview | bytes, name: str) -> dict[str, Array]:
    """All tensors of a safetensors file, as read-only arrays that share its memory.

    `name` is how errors call the file. Raises BundleError for anything but a whole, exact file.
    """
    data = memoryview(data)
    if len(data) < 8:
        raise BundleError(f"{name} is no safetensors file: it has {len(data)} bytes")
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise BundleError(f"{name} is no safetensors file: its header of {start - 8} bytes is longer than the file")
    try:
        raw = msgspec.json.decode(data[8:start], type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {key: msgspec.json.decode(value, type=_Entry) for key, value in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{name} has a damaged safetensors header: {error}") from None

    arrays: dict[str, Array] = {}
    position = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in _DTYPES:
            raise BundleError(f"{name}: tensor {key} has type {entry.dtype}; read are {', '.join(_DTYPES)}")
        dtype = np.dtype(_DTYPES[entry.dtype])
        if min(entry.shape, default=0) < 0 or end - begin != math.prod(entry.shape) * dtype.itemsize:
            raise BundleError(
                f"{name}: tensor {key} has {end - begin} bytes, not what its shape {list(entry.shape)} needs"
            )
        if begin != position or start + end > len(data):
            raise BundleError(f"{name}: tensor {key} overlaps another one, leaves a gap, or ends outside the file")
        count = math.prod(entry.shape)
        # frombuffer refuses a count of 0 at the very end of a buffer
        flat = np.frombuffer(data, dtype, count, start + begin) if count else np.empty(0, dtype)
        arrays[key] = flat.reshape(entry.shape)
        arrays[key].flags.writeable = False
        position = end
    if start + position != len(data):
        raise BundleError(f"{name} has {len(data) - start - position} bytes that belong to no tensor")
    return arrays


def tensor(tensors: dict[str, Array], key: str, shape: tuple[int, ...], name: str) -> npt.NDArray[np.float32]:
    """The float32 tensor `key` of exactly `shape`, all of it finite; raises BundleError otherwise."""
    if key not in tensors:
        raise BundleError(f"{name} has no tensor {key}; it has {', '.join(sorted(tensors)) or 'none'}")
    found = tensors[key]
    if found.dtype != np.float32 or found.shape != shape:
        raise BundleError(f"{name}: tensor {key} is {found.dtype} {list(found.shape)}, expected float32 {list(shape)}")
    values = found.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise BundleError(f"{name}: tensor {key} holds a NaN or an infinity")
    return values
