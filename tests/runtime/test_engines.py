"""Built engines: incremental, sealed, bound to their graphs and machine; never half there."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc.backends import open_backend
from latentc.backends.onnxruntime import OnnxRuntimeBackend
from latentc.backends.protocol import Backend
from latentc.bundle import Bundle, open_bundle
from latentc.engines import build_engines, is_up_to_date, load_engines
from latentc.errors import BundleError
from latentc.sampler import sample
from latentc.table import table_from_bundle
from latentc.trajectory import noise_from_seed

from tests.runtime import toy


@pytest.fixture
def backend() -> Backend:
    return open_backend("onnxruntime", threads=1)


def drawn(bundle: Bundle, backend: Backend, built: bool) -> toy.Floats:
    loaded = load_engines(bundle, backend)
    assert loaded.built == built, loaded.reason
    table = table_from_bundle(bundle, bundle.manifest.tables[1])
    noise = noise_from_seed(3, (1, toy.CHANNELS, toy.SIZE, toy.SIZE), 0)
    trajectory = toy.trajectory(table, noise, (1,), 2.0)
    return sample(backend, loaded.engines, bundle.manifest, trajectory)


def test_built_engines_draw_the_same_picture(bundle: Path, backend: Backend) -> None:
    opened = open_bundle(bundle)
    assert load_engines(opened, backend).reason is None  # none built is nothing to report
    before = drawn(opened, backend, built=False)
    directory = build_engines(opened, backend)
    assert directory == bundle / "engines" / backend.target
    assert [path.name for path in (bundle / "engines").iterdir()] == [backend.target]
    assert is_up_to_date(opened, backend)
    np.testing.assert_allclose(drawn(open_bundle(bundle), backend, built=True), before, rtol=0, atol=1e-6)
    assert before.std() > 0.05


def test_any_damage_falls_back_to_the_graphs_and_says_so(bundle: Path, backend: Backend) -> None:
    opened = open_bundle(bundle)
    directory = build_engines(opened, backend)
    before = drawn(opened, backend, built=True)
    for path in sorted(directory.iterdir()):
        whole = path.read_bytes()
        damages = [None, whole + b"\0"]
        if whole:
            damages += [whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]]
        for damaged in damages:
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            loaded = load_engines(opened, backend)
            assert not loaded.built
            assert path.name.removesuffix(".sha256") in str(loaded.reason)
            assert not is_up_to_date(opened, backend)
            np.testing.assert_array_equal(drawn(opened, backend, built=False), before)
        path.write_bytes(whole)
    assert drawn(opened, backend, built=True).shape == before.shape


def test_another_machine_version_or_graph_makes_it_stale(
    bundle: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engines(open_bundle(bundle), backend)
    key = backend.engine_key()
    monkeypatch.setattr(OnnxRuntimeBackend, "engine_key", lambda _: {**key, "onnxruntime": "9", "machine": "other"})
    assert load_engines(open_bundle(bundle), backend).reason == "made for another machine and onnxruntime"
    monkeypatch.undo()
    assert is_up_to_date(open_bundle(bundle), backend)
    path = bundle / "graphs/denoise.weights"
    path.write_bytes(bytes(len(path.read_bytes())))
    toy.seal(bundle, toy.read_manifest(bundle))
    assert load_engines(open_bundle(bundle), backend).reason == "made from other graphs"


def test_a_linked_engine_directory_is_not_used(bundle: Path, backend: Backend) -> None:
    directory = build_engines(open_bundle(bundle), backend)
    outside = Path(shutil.move(directory, bundle.parent / "outside"))
    directory.symlink_to(outside)
    assert "is a link" in str(load_engines(open_bundle(bundle), backend).reason)


def reseal(directory: Path, changes: dict[str, object]) -> None:
    """Changes engine.json, and hashes it again as a tamperer would."""
    record = msgspec.json.decode((directory / "engine.json").read_bytes())
    toy.seal_bytes(directory, msgspec.json.encode({**record, **changes}))
    for suffix in ("", ".sha256"):
        (directory / f"manifest.json{suffix}").replace(directory / f"engine.json{suffix}")
    seal = directory / "engine.json.sha256"
    seal.write_text(seal.read_text().replace("manifest.json", "engine.json"))


def test_record_of_another_schema_is_stale(bundle: Path, backend: Backend) -> None:
    directory = build_engines(open_bundle(bundle), backend)
    reseal(directory, {"extra": 1})
    assert "unknown field `extra`" in str(load_engines(open_bundle(bundle), backend).reason)


@pytest.mark.parametrize("file", ["/etc/hostname", "../../parity.json"])
def test_a_record_cannot_name_files_elsewhere(bundle: Path, backend: Backend, file: str) -> None:
    directory = build_engines(open_bundle(bundle), backend)
    data = (directory / file).read_bytes()
    reseal(directory, {"files": {file: {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}}})
    assert load_engines(open_bundle(bundle), backend).reason == f"{file!r} is no plain path inside a bundle"


def test_a_record_that_leaves_a_file_out_is_not_used(bundle: Path, backend: Backend) -> None:
    directory = build_engines(open_bundle(bundle), backend)
    reseal(directory, {"files": {}})
    loaded = load_engines(open_bundle(bundle), backend)
    assert (loaded.built, loaded.reason) == (False, "engine.json does not list 'denoise.onnx'")


def test_a_build_that_fails_leaves_the_old_engine(
    bundle: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = build_engines(open_bundle(bundle), backend)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def full(*_: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OnnxRuntimeBackend, "build_engine", full)
    with pytest.raises(BundleError, match=r"engines cannot be written to .*: No space left on device"):
        build_engines(open_bundle(bundle), backend)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in (bundle / "engines").iterdir()] == [backend.target]


SLOW_BUILD = """
import sys, time
from pathlib import Path
from latentc.backends.onnxruntime import OnnxRuntimeBackend
from latentc.cli import main
build = OnnxRuntimeBackend.build_engine
def slow(self, graph, directory, manifest):
    files = build(self, graph, directory, manifest)
    Path(sys.argv[2]).touch()
    time.sleep(60)
    return files
OnnxRuntimeBackend.build_engine = slow
sys.exit(main(["build", sys.argv[1], "--force"]))
"""


@pytest.mark.parametrize("had_engine", [False, True])
def test_kill_in_the_middle_of_a_build_leaves_no_half_engine(bundle: Path, backend: Backend, had_engine: bool) -> None:
    engines = bundle / "engines"
    before = {}
    if had_engine:
        before = {path.name: path.read_bytes() for path in build_engines(open_bundle(bundle), backend).iterdir()}
    begun = bundle.parent / "begun"
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(bundle), str(begun)])
    deadline = time.monotonic() + 30
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun.exists(), "the build never came to its first engine"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert any(path.name.startswith(".stage-") for path in engines.iterdir()), "it was not killed in the middle"
    target = engines / backend.target
    assert target.exists() == had_engine
    if had_engine:
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    loaded = load_engines(open_bundle(bundle), backend)
    assert (loaded.built, loaded.reason) == (had_engine, None)
    build_engines(open_bundle(bundle), backend)  # removes what was left
    assert [path.name for path in engines.iterdir()] == [backend.target]
    assert load_engines(open_bundle(bundle), backend).built
