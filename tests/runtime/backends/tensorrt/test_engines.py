"""Engines of TensorRT in a bundle: refused where they do not fit, with the command; renewed graph by graph."""

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc.backends import open_backend, resolve_backend
from latentc.bundle import open_bundle
from latentc.cli import main
from latentc.engines import build_engines, is_up_to_date, load_engines
from latentc.errors import BackendError
from latentc.request import Asked, resolve
from latentc.session import open_session

from tests.runtime import toy
from tests.runtime.backends.tensorrt.conftest import Machine
from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda
from tests.runtime.backends.tensorrt.helpers import built, reference, request_for


def refused(bundle: Path) -> str:
    """Why the engines cannot be loaded here."""
    with pytest.raises(BackendError) as caught:
        open_session(bundle, "tensorrt")
    message = str(caught.value)
    assert message.endswith(f"; latentc build {bundle} --backend tensorrt makes them")
    return message


def test_without_engines_the_command_is_named(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    assert f"{bundle} has no engines for this machine" in refused(bundle)


def test_another_tensorrt_is_refused_by_both_versions(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    built(bundle)
    machine("11.4.0.106")
    message = refused(bundle)
    assert "for another TensorRT: built for TensorRT 10.3.0 on Fake GPU (compute capability 8.7" in message
    assert "here is TensorRT 11.4.0.106" in message


def test_another_gpu_is_refused_by_name_and_capability(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    built(bundle)
    machine("10.3.0", cuda=FakeCuda("Other GPU"))
    assert "they are for another GPU: built for" in refused(bundle)
    machine("10.3.0", cuda=FakeCuda("Other GPU", (9, 0)))
    assert "they are for another GPU and compute capability: built for" in refused(bundle)


def test_compatible_engines_run_elsewhere(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    built(bundle, version_compatible=True, hardware_compatible=True)
    machine("10.13.3.9", cuda=FakeCuda("Other GPU", (9, 0)))
    session = open_session(bundle, "tensorrt")
    request = request_for(session)
    np.testing.assert_array_equal(session.draw(request, 3), reference(bundle).draw(request, 3))
    machine("11.4.0.106")
    assert "another TensorRT" in refused(bundle)  # not across major versions


def test_the_lean_runtime_takes_only_compatible_engines(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    built(bundle)
    machine("10.3.0", lean=True)
    assert "the lean runtime runs only engines that were built with --version-compatible" in refused(bundle)


@pytest.mark.parametrize("file", ["denoise.plan", "denoise.json", "engine.json"])
def test_a_flipped_bit_is_refused_before_the_plan_is_read(
    machine: Machine, bundle: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module = machine("10.3.0")
    session = built(bundle)
    path = bundle / "engines" / session.backend.target / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    read: list[object] = []
    monkeypatch.setattr(module.Runtime, "deserialize_cuda_engine", lambda self, plan: read.append(plan))
    assert f"{file} is damaged" in refused(bundle)
    assert not read


def test_changed_weights_make_engines_stale(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    built(bundle)
    change(bundle, "decode")
    assert "made from other graphs" in refused(bundle)


def change(bundle: Path, graph: str) -> None:
    """Another model of the same behaviour: its name is another."""
    import onnx

    path = bundle / f"graphs/{graph}.onnx"
    model = onnx.load_model_from_string(path.read_bytes())
    model.producer_name += "!"
    path.write_bytes(model.SerializeToString())
    toy.seal(bundle, toy.read_manifest(bundle))


def test_only_what_changed_is_built_again(machine: Machine, bundle: Path) -> None:
    _, module = machine("10.3.0")
    built(bundle)
    assert len(module.world.builds) == 2
    backend = open_backend("tensorrt")
    assert is_up_to_date(open_bundle(bundle), backend)
    change(bundle, "decode")
    opened = open_bundle(bundle)
    assert not is_up_to_date(opened, backend)
    build_engines(opened, backend)
    assert len(module.world.builds) == 3
    assert load_engines(opened, backend).built
    build_engines(opened, backend, force=True)
    assert len(module.world.builds) == 5
    # A damaged plan is built again, the other one is taken over.
    plan = bundle / "engines" / backend.target / "denoise.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    build_engines(opened, backend)
    assert len(module.world.builds) == 6
    assert load_engines(opened, backend).built


def test_other_options_build_again(machine: Machine, bundle: Path) -> None:
    _, module = machine("10.3.0")
    session = built(bundle)
    for number, options in enumerate(({"opt_level": 1}, {"batch": 2}, {"prologue": "cpu"}, {"workspace": 1 << 20}), 2):
        built(bundle, **options)
        assert len(module.world.builds) == 2 * number, options
    assert not is_up_to_date(session.bundle, session.backend)


def test_shapes_outside_of_the_profile_are_named_with_the_bounds(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session = built(bundle, batch=2)
    with pytest.raises(BackendError) as caught:
        session.draw(request_for(session, 3), 1)
    assert "does not take [5, 3, 4, 4, 4] as history; it was built for [2, 1, 4, 4, 4] to [7, 2, 4, 4, 4]" in str(
        caught.value
    )
    assert "--batch" in str(caught.value)


def test_a_sealed_record_of_a_tamperer_cannot_name_files_elsewhere(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session = built(bundle)
    directory = bundle / "engines" / session.backend.target
    record = msgspec.json.decode((directory / "engine.json").read_bytes())
    record["files"]["../../manifest.json"] = record["files"].pop("decode.plan")
    data = msgspec.json.encode(record)
    (directory / "engine.json").write_bytes(data)
    (directory / "engine.json.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  engine.json\n")
    assert "is no plain path inside a bundle" in refused(bundle)


def test_auto_is_tensorrt_where_engines_were_built(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    assert resolve_backend("auto", bundle) == "onnxruntime"
    built(bundle)
    assert resolve_backend("auto", bundle) == "tensorrt"
    assert resolve_backend("auto") == "onnxruntime"


def test_no_gpu_is_one_line(machine: Machine, bundle: Path) -> None:
    cuda, module = machine("11.4.0.106")
    cuda.devices = 0
    module.Runtime = None  # its constructor ends the process there
    with pytest.raises(BackendError, match="CUDA sees no GPU"):
        open_backend("tensorrt")


def test_what_tensorrt_does_not_make_is_one_line(machine: Machine, bundle: Path) -> None:
    """8.6.1's Builder without a driver: TypeError, pybind11::init(): factory function returned nullptr."""
    _, module = machine("8.6.1")

    def nothing(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module.Builder = nothing
    with pytest.raises(BackendError, match=r"TensorRT 8.6.1 makes no Builder: pybind11::init\(\): factory function"):
        built(bundle)


def test_too_little_memory_is_one_line(machine: Machine, bundle: Path) -> None:
    machine("10.3.0", cuda=FakeCuda(total=20_000))
    session = built(bundle)
    with pytest.raises(BackendError, match=r"no device memory for .* MB more: .* are free; try a smaller -b"):
        session.draw(request_for(session, 4), 1)


def test_the_command_line(machine: Machine, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cuda, module = machine("10.3.0")
    flags = ["--backend", "tensorrt", "--workspace", "512MiB", "--opt-level", "2", "--json"]
    assert main(["build", str(bundle), *flags]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert (report["built"], report["backend"]) == (True, "tensorrt 10.3.0")
    assert module.world.builds[0]["pools"] == {"WORKSPACE": 512 * 2**20}
    assert main(["build", str(bundle), *flags]) == 0
    assert not msgspec.json.decode(capsys.readouterr().out)["built"]
    output = tmp_path / "a.png"
    draw = ["sample", str(bundle), "--label", "cat", "-s", "7", "--no-metadata", "-o", str(output)]
    cuda.record.clear()
    assert main([*draw, "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert report["backend"] == "tensorrt 10.3.0"
    # The fake runs when it is waited for, at the end; the steps' time is still the steps'.
    assert cuda.record[-2:] == ["DeviceToHost", "synchronise"]
    assert "synchronise" not in cuda.record[cuda.record.index("run") : -1]
    assert report["timings_ms"]["denoise"] > 0
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["engines"] == ["tensorrt-10.3.0-sm87"]
    drawn = output.read_bytes()
    assert main([*draw, "--backend", "onnxruntime", "--threads", "1"]) == 0
    assert output.read_bytes() == drawn


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "onnxruntime", "--strip-weights"], "backend onnxruntime has no --strip-weights; these are for"),
        (["--backend", "tensorrt", "--workspace", "lots"], "--workspace lots is no size; give one such as 512MiB"),
        (["--backend", "tensorrt", "--workspace", "0"], "--workspace 0 is no size"),
        (["--backend", "tensorrt", "--weight-streaming", "-3"], "--weight-streaming -3 is no size"),
        (["--backend", "tensorrt", "--opt-level", "6"], "--opt-level 6 is out of range; give 0 to 5"),
        (["--backend", "tensorrt", "--batch", "0"], "--batch 0 is out of range; give 1 or more"),
        (["--backend", "tensorrt", "--size", "64"], "--size 64 is no size; give one such as 768x512"),
        (["--backend", "tensorrt", "--size", "64x64"], "--size 64x64 cannot be drawn; toy draws 8x8 only"),
    ],
)
def test_mistakes_get_one_line(
    machine: Machine, bundle: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("10.3.0")
    try:
        code = main(["build", str(bundle), *flags])
    except SystemExit as exit_:
        code = exit_.code
    said = capsys.readouterr()
    assert code in (1, 2)
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not list(bundle.glob("engines/*/*.plan"))


def test_no_tensorrt_is_one_line(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    assert main(["build", str(bundle), "--backend", "tensorrt"]) == 1
    assert 'backend tensorrt is not installed; pip install "latentc[tensorrt]"' in capsys.readouterr().err


def test_engines_of_a_cpu_lie_beside_those_of_a_gpu(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    built(bundle)
    build_engines(open_bundle(bundle), open_backend("onnxruntime", 1))
    opened = open_bundle(bundle)
    for name in ("tensorrt", "onnxruntime"):
        assert load_engines(opened, open_backend(name, 1)).built
    request = resolve(opened.manifest, Asked(label="cat", steps=4))
    assert open_session(bundle, "onnxruntime", 1).draw(request, 1).shape == (1, 3, 8, 8)
    shutil.rmtree(bundle / "engines")
