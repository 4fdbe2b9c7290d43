"""Whether a plan may run: same TensorRT, GPU and capability, unless it was built for more."""

import pytest
from latentc.backends.tensorrt.plan_record import record_from_bytes, refusal_of
from latentc.errors import BundleError

HERE = {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7", "machine": "aarch64"}
VC, HC = {"version_compatible": "True"}, {"hardware_compatible": "True"}


@pytest.mark.parametrize(
    ("built", "options", "word"),
    [
        ({}, {}, None),
        ({"tensorrt": "10.3.1"}, {}, "TensorRT"),
        ({"gpu": "Thor"}, {}, "GPU"),
        ({"compute_capability": "9.0"}, {}, "compute capability"),
        ({"machine": "x86_64"}, {}, "machine"),
        ({"machine": "x86_64"}, {**VC, **HC}, "machine"),
        ({"tensorrt": "10.2.9"}, VC, None),
        ({"tensorrt": "10.10.0"}, VC, "TensorRT"),  # newer than here, though "10.10" < "10.3" as text
        ({"tensorrt": "8.6.1"}, VC, "TensorRT"),
        ({"gpu": "Thor"}, VC, "GPU"),
        ({"gpu": "Thor", "compute_capability": "11.0"}, HC, None),
        ({"gpu": "H100", "compute_capability": "9.0"}, HC, None),
        ({"gpu": "T4", "compute_capability": "7.5"}, HC, "compute capability"),
        ({"gpu": "H100", "compute_capability": "9.0", "tensorrt": "10.2.0"}, HC, "TensorRT"),
    ],
)
def test_refusals(built: dict[str, str], options: dict[str, str], word: str | None) -> None:
    refusal = refusal_of({**HERE, **built}, HERE, options, lean=False)
    if word is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.startswith(f"they are for another {word}: built for TensorRT ")


def test_everything_that_differs_is_named() -> None:
    built = {"tensorrt": "11.4.0.106", "gpu": "H100", "compute_capability": "9.0", "machine": "x86_64"}
    assert refusal_of(built, HERE, {}, lean=False) == (
        "they are for another TensorRT and GPU and compute capability and machine: "
        "built for TensorRT 11.4.0.106 on H100 "
        "(compute capability 9.0, x86_64); here is TensorRT 10.3.0 on Orin (compute capability 8.7, aarch64)"
    )


def test_lean_and_unknown_records() -> None:
    assert "built with --version-compatible" in str(refusal_of(HERE, HERE, {}, lean=True))
    assert refusal_of(HERE, HERE, VC, lean=True) is None
    assert refusal_of({**HERE, "driver": "1"}, HERE, {}, lean=False) == "they were made by another latentc"


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"stripped":1,"weight_streaming":null,"profiles":{}}'])
def test_damaged_records(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"denoise.json does not follow the schema"):
        record_from_bytes(memoryview(data), "denoise")
