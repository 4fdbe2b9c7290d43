"""Backends by name: auto, unknown ones, and ones that are not installed."""

import pytest
from latentc import backends
from latentc.errors import BackendError


def test_auto_takes_the_first_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.resolve_backend("auto") == "onnxruntime"
    absent = {"absent": ("latentc.backends.absent", ("no_such_package",), "absent"), **backends.BACKENDS}
    monkeypatch.setattr(backends, "BACKENDS", absent)
    assert backends.resolve_backend("auto") == "onnxruntime"


def test_unknown_backend() -> None:
    with pytest.raises(
        BackendError, match=r"^no backend cuda; there are onnxruntime, tensorrt, onnxruntime-cuda and auto$"
    ):
        backends.open_backend("cuda")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backends, "BACKENDS", {"onnxruntime": ("latentc.backends.onnxruntime", ("no_such_package",), "cpu")}
    )
    for name in ("onnxruntime", "auto"):
        with pytest.raises(BackendError, match=rf'^backend {name} is not installed; pip install "latentc\[cpu\]"$'):
            backends.open_backend(name)
