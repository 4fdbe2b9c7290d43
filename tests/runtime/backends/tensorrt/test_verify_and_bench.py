"""latentc verify, bench and --memory low with engines of TensorRT."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc.cli import main
from latentc.session import open_session

from tests.runtime.backends.tensorrt.conftest import Machine
from tests.runtime.backends.tensorrt.helpers import built, reference, request_for


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, msgspec.json.decode(said.out.splitlines()[-1]) if said.out else {"error": said.err}


@pytest.mark.parametrize("prologue", [[], ["--prologue", "cpu"]])
def test_verify_compares_engines_with_torch_and_with_the_graphs(
    machine: Machine, random_dit_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prologue: list[str]
) -> None:
    import shutil

    path = Path(shutil.copytree(random_dit_bundle, tmp_path / "dit", ignore=shutil.ignore_patterns("engines")))
    machine("10.3.0")
    built(path)
    code, report = document(capsys, "verify", path, "--backend", "tensorrt", "--json", *prologue)
    assert code == 0, report
    figures = report["figures"]
    graphs = {"schedule/rows", "denoise/prediction", "decode/image"}
    kinds = {
        "torch and the graph, run node by node": graphs,
        "torch and the built engine": graphs,
        "the graph in onnxruntime": graphs,
        "torch's pipeline and the loop, built engine": {"trajectory/image"},
        "the loop in onnxruntime": {"trajectory/image"},
    }
    for against, expected in kinds.items():
        found = {figure["tensor"] for figure in figures if figure["against"].startswith(against)}
        assert expected <= found, against
    on_cpu = [f["value"] for f in figures if f["against"].startswith("the loop in onnxruntime")]
    assert on_cpu == [200.0], "the fake computes as ONNX Runtime does"


def test_verify_without_onnx_runtime_compares_with_torch_alone(
    machine: Machine, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("10.3.0")
    built(bundle)
    from latentc.commands import verify
    from latentc.errors import BackendError

    opened = verify.open_backend

    def only_tensorrt(name: str, threads: int) -> object:
        if name == "onnxruntime":
            raise BackendError("backend onnxruntime is not installed")
        return opened(name, threads)

    monkeypatch.setattr(verify, "open_backend", only_tensorrt)
    assert main(["verify", str(bundle), "--backend", "tensorrt"]) == 0
    said = capsys.readouterr().out
    assert "note  engines are compared with torch's outputs alone, not with the graphs: backend onnxruntime" in said
    assert said.count("(torch and the built engine)") == 2
    assert "node by node" not in said


def test_verify_fails_where_an_engine_computes_something_else(
    machine: Machine, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, module = machine("10.3.0")
    built(bundle)
    running = module.ICudaEngine._running

    def wrong(self: object) -> object:
        for tensor in self.proto.graph.initializer:
            if tensor.name == "mix" and self._session is None:
                values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)
                tensor.raw_data = values.tobytes()
        return running.fget(self)

    module.ICudaEngine._running = property(wrong)
    code, report = document(capsys, "verify", bundle, "--backend", "tensorrt", "--json")
    assert code == 3
    failed = [figure["against"] for figure in report["figures"] if figure["value"] > figure["bound"]]
    assert any(against.startswith("torch and the built engine") for against in failed)
    assert any(against.startswith("the graph in onnxruntime") for against in failed)
    assert not any("node by node" in against for against in failed)


def test_bench_measures_on_the_devices_own_clock(
    machine: Machine, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentc.bench import ceilings

    monkeypatch.setattr(ceilings, "_SIDE", {"host": 32, "device": 64})
    monkeypatch.setattr(ceilings, "_COPIED_BYTES", {"host": 1 << 16, "device": 1 << 18})
    cuda, _ = machine("10.3.0")
    session = built(bundle)
    code, report = document(capsys, "bench", bundle, "--batch", "1,2", "--repeat", "3", "--json")
    launches = cuda.record.count("launch")
    assert code == 0, report
    assert report["backend"] == "tensorrt 10.3.0"  # auto, since engines were built
    assert report["machine"]["gpu"] == "Fake GPU"
    assert report["ceilings"]["matrix_side"] == 64
    assert report["engine_bytes"] > 1000
    assert 0 < report["memory_bytes"] < cuda.total
    calls = request_for(session).table.calls
    for batch, expected in zip(report["batches"], (1, 2), strict=True):
        timings = batch["timings"]
        assert timings["batch"] == expected
        assert timings["step_ms"]["count"] == 3 * calls
        assert 0 < timings["step_ms"]["p50"] <= timings["step_ms"]["p90"] <= timings["step_ms"]["p99"]
        assert batch["share"]["flops"] == 1000 * expected * 2  # the toy's, for two branches
    capsys.readouterr()
    flags = ["--repeat", "1", "--json"]
    assert main(["bench", str(bundle), *flags]) == 0  # built for at most 4 pictures
    said = capsys.readouterr()
    assert [b["timings"]["batch"] for b in msgspec.json.decode(said.out)["batches"]] == [1, 2, 4]
    assert said.err.startswith("latentc: batch 8 was left out: the engine of graph denoise does not take")
    assert main(["bench", str(bundle), *flags, "--batch", "8"]) == 1
    assert launches == 2 * 4  # the loop as one: recorded by the second request of each batch


def test_low_memory_holds_one_engine_at_a_time(machine: Machine, bundle: Path) -> None:
    cuda, module = machine("10.3.0")
    built(bundle)
    alive: set[int] = set()
    most = 0
    create = module.ICudaEngine.__init__

    def count(self: object, *arguments: object) -> None:
        nonlocal most
        create(self, *arguments)
        alive.add(id(self))
        most = max(most, len(alive))

    module.ICudaEngine.__init__ = count
    module.ICudaEngine.__del__ = lambda self: alive.discard(id(self))
    session, plain = open_session(bundle, "tensorrt", memory="low"), reference(bundle)
    request = request_for(session)
    for seed in (1, 2, 3):
        cuda.record.clear()
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
    assert most == 1
    assert not any("capture" in what for what in cuda.record), "what is dropped in between cannot be recorded"
    with pytest.raises(ValueError, match="with --memory low one request runs at a time"):
        session.in_lane()
