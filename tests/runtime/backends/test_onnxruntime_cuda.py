"""ONNX Runtime on CUDA, with the CPU's provider and a fake GPU in the place of the real ones."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from latentc.backends import onnxruntime_cuda as module
from latentc.backends import open_backend
from latentc.backends.cuda.runtime import Cuda
from latentc.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend, OnnxRuntimeCudaEngine
from latentc.bundle import open_bundle
from latentc.engines import build_engines, load_engines
from latentc.errors import BackendError
from latentc.session import Session

from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda
from tests.runtime.backends.tensorrt.helpers import reference, request_for


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Device memory is host memory, so ONNX Runtime's CPU can stand in for its CUDA."""
    cuda = FakeCuda()
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(OnnxRuntimeCudaBackend, "_providers", lambda self, records: ["CPUExecutionProvider"])
    run = OnnxRuntimeCudaEngine.run

    def when_its_turn_comes(self: OnnxRuntimeCudaEngine) -> None:
        self._lane.pool.synchronise()  # the fake's stream; the real one is ONNX Runtime's as well
        run(self)

    monkeypatch.setattr(OnnxRuntimeCudaEngine, "run", when_its_turn_comes)
    return cuda


def test_the_same_loop_draws_the_same_picture(gpu: FakeCuda, bundle: Path) -> None:
    backend = OnnxRuntimeCudaBackend(1, Cuda(gpu.module()))
    opened, plain = open_bundle(bundle), reference(bundle)
    assert not load_engines(opened, backend).built
    directory = build_engines(opened, backend)
    assert directory.name == "onnxruntime-cuda-sm87"
    loaded = load_engines(opened, backend)
    assert loaded.built
    session = Session(opened, backend, loaded.engines)
    for seed in (1, 2, 3):
        request = request_for(session)
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
    assert not any("capture" in what for what in gpu.record), "it records runs, not the loop"


def test_each_binding_has_a_recording_of_its_own(gpu: FakeCuda, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OnnxRuntimeCudaBackend(1, Cuda(gpu.module()))
    engine = backend.load_graph(open_bundle(bundle).graph("decode"))
    assert isinstance(engine, OnnxRuntimeCudaEngine)
    monkeypatch.setattr(module, "MAX_GRAPHS", 2)
    rows = backend.buffer((3, 64), np.float32)
    ids = []
    for row in (0, 1, 0, 2):
        engine.bind("output_row", rows.view(row))
        ids.append(engine._graph_id())
    assert ids == ["1", "2", "1", "-1"]


def test_the_providers_are_told_of_the_stream_and_of_recording(bundle: Path) -> None:
    gpu = FakeCuda()
    backend = OnnxRuntimeCudaBackend(1, Cuda(gpu.module()))
    (name, settings), last = backend._providers(records=True)
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert settings["user_compute_stream"] == str(backend._stream_lane.stream)
    assert (settings["enable_cuda_graph"], settings["use_tf32"]) == ("1", "0")
    assert backend._providers(records=False)[0][1]["enable_cuda_graph"] == "0"


def test_a_wheel_without_cuda_is_one_line() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        BackendError, match=r'has no CUDA; pip uninstall onnxruntime, then pip install "latentc\[cuda\]"'
    ):
        open_backend("onnxruntime-cuda")
