"""A machine with a fake GPU and a fake TensorRT of any supported version, and bundles to run on it."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda
from tests.runtime.backends.tensorrt.fake_tensorrt import fake_module

VERSIONS = ["8.6.1", "10.3.0", "10.13.3.9", "11.4.0.106"]

Machine = Callable[..., tuple[FakeCuda, ModuleType]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Puts a GPU and a TensorRT into sys.modules: machine("10.3.0") or machine("10.3.0", lean=True)."""

    def make(version: str, lean: bool = False, cuda: FakeCuda | None = None) -> tuple[FakeCuda, ModuleType]:
        cuda = FakeCuda() if cuda is None else cuda
        module = fake_module(version, cuda, lean)
        monkeypatch.setitem(sys.modules, "tensorrt", None if lean else module)
        monkeypatch.setitem(sys.modules, "tensorrt_lean", module if lean else None)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda.module())
        return cuda, module

    return make
