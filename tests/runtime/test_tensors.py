"""The safetensors reader: equal to the package of that name on whole files, strict on all others."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latentc.errors import BundleError
from latentc.tensors import tensor, tensors_from_bytes
from safetensors.numpy import save

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1, -2], np.int64),
    "empty": np.empty((0, 4), np.float32),
    "scalar": np.array(2.5, np.float64),
    "half": np.ones(3, np.float16),
    "flag": np.array([True, False]),
}
WHOLE = save(ARRAYS, metadata={"format": "np"})


def build(header: object, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_package_writes() -> None:
    read = tensors_from_bytes(WHOLE, "file")
    assert read.keys() == ARRAYS.keys()
    for key, expected in ARRAYS.items():
        assert read[key].dtype == expected.dtype
        np.testing.assert_array_equal(read[key], expected)
        assert not read[key].flags.writeable


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "has 0 bytes"),
        (b"\xff" * 8, "longer than the file"),
        (WHOLE + b"\0", "1 bytes that belong to no tensor"),
        (WHOLE[:-1], "outside the file"),
        (build([1]), "damaged safetensors header"),
        (build({"a": {**entry([1], 0, 4), "extra": 1}}, b"1234"), "damaged safetensors header"),
        (build({"a": entry([1], 0, 4, "BF16")}, b"1234"), "type BF16; read are F64, F32"),
        (build({"a": entry([2], 0, 4)}, b"1234"), r"not what its shape \[2\] needs"),
        (build({"a": entry([-1], 0, 4)}, b"1234"), r"not what its shape \[-1\] needs"),
        (build({"a": entry([-1, -1], 0, 4)}, b"1234"), "not what its shape"),
        (build({"a": entry([1], 4, 0)}, b"1234"), "not what its shape"),
        (build({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"), "overlaps another one"),
        (build({"a": entry([1], 4, 8)}, b"12345678"), "leaves a gap"),
        (build({"a": entry([2**40, 2**40], 0, 4)}, b"1234"), "not what its shape"),
        (build({"a": entry([1], -4, 0)}, b"1234"), "leaves a gap"),
    ],
)
def test_anything_but_a_whole_file_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why):
        tensors_from_bytes(data, "file")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) * 8 - 1), st.integers(0, len(WHOLE)))
def test_damage_is_read_or_refused_and_never_crashes(bit: int, length: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8
    for data in (bytes(damaged), WHOLE[:length]):
        with contextlib.suppress(BundleError):
            tensors_from_bytes(data, "file")


def test_a_tensor_must_be_what_is_expected() -> None:
    read = {"a": ARRAYS["a"], "nan": np.array([np.nan], np.float32)}
    np.testing.assert_array_equal(tensor(read, "a", (2, 3), "file"), ARRAYS["a"])
    for key, shape, why in (
        ("b", (2, 3), "has no tensor b; it has a, nan"),
        ("a", (3, 2), r"is float32 \[2, 3\], expected float32 \[3, 2\]"),
        ("nan", (1,), "holds a NaN"),
    ):
        with pytest.raises(BundleError, match=why):
            tensor(read, key, shape, "file")


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    view = memoryview(WHOLE)
    read = tensors_from_bytes(view, "file")
    assert np.shares_memory(read["a"], np.frombuffer(view, np.uint8))
