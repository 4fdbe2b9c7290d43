"""The scripts for a GPU, where there is none: they say so, plan, and run on the fake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc.backends import open_backend
from latentc.backends.options import EngineOptions

from benchmarks.gpu import loop, match, peers, plot, prepare, worker
from benchmarks.gpu.where import where, why_no_gpu
from tests.runtime import toy
from tests.runtime.backends.tensorrt.conftest import Machine, machine  # noqa: F401
from tests.runtime.backends.tensorrt.helpers import built, request_for

REAL = Path(__file__).parents[2] / "benchmarks/results/gpu_match.json"


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    return toy.write_bundle(tmp_path / "toy")


@pytest.mark.parametrize("script", [match, loop, peers])
def test_without_a_gpu_nothing_is_measured_and_the_reason_is_said(
    script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    bundles = [] if script is peers else [str(tmp_path)]
    assert script.main([*bundles, "--output", str(tmp_path / "a.json")]) == 1
    assert "nothing was measured: cuda-bindings are not installed" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def check_record(records: list[list[str]]) -> None:
    """How three requests of one shape ran: enqueued, recorded, replayed; by one launch, waited for once."""
    first, second, third = records
    assert "launch" not in first
    begin, end = second.index("begin_capture"), second.index("end_capture")
    assert begin < end
    assert "synchronise" not in second[begin + 1 : end]
    assert second[end:] == ["end_capture", "launch", "copy", "synchronise"]
    assert third[-3:] == ["launch", "copy", "synchronise"]
    assert third.count("launch") == third.count("synchronise") == 1
    assert not {"begin_capture", "end_capture", "allocate", "free"} & set(third)


def test_match_on_the_fake(machine: Machine, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    machine("10.3.0")
    for module in (match, prepare):
        monkeypatch.setattr(module, "STEPS", 4)
    np.save(toy_bundle.with_suffix(".npy"), prepare.expected(toy_bundle))
    output = toy_bundle.parent / "results/match.json"
    assert match.main([str(toy_bundle), "--output", str(output)]) == 0
    document = msgspec.json.decode(output.read_bytes())
    assert document["where"]["gpu"] == "Fake GPU"
    (result,) = document["bundles"]
    assert result["passed"]
    assert result["psnr_db"] > 100
    check_record(result["records"])
    wrong = np.load(toy_bundle.with_suffix(".npy")) + np.float32(0.1)
    np.save(toy_bundle.with_suffix(".npy"), wrong)
    assert match.main([str(toy_bundle), "--output", str(output)]) == 3


def test_the_real_machines_record_is_the_fakes() -> None:
    if not REAL.exists():
        pytest.skip("no GPU has been at hand: python -m benchmarks.gpu.match writes its record")
    for result in msgspec.json.decode(REAL.read_bytes())["bundles"]:
        check_record(result["records"])


def test_loop_measures_three_ways(machine: Machine, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from latentc.bench import ceilings

    monkeypatch.setattr(ceilings, "_SIDE", {"host": 32, "device": 32})
    monkeypatch.setattr(ceilings, "_COPIED_BYTES", {"host": 1 << 16, "device": 1 << 16})
    cuda, _ = machine("10.3.0")
    output = toy_bundle.parent / "loop.json"
    flags = ["--batch", "1,2", "--steps", "4", "--repeat", "2", "--output", str(output)]
    assert loop.main([str(toy_bundle), *flags]) == 0
    document = msgspec.json.decode(output.read_bytes())
    assert [result["batch"] for result in document["results"]] == [1, 2]
    for result in document["results"]:
        for kind in ("request_ms", "loop_ms"):
            assert {way: ms["count"] for way, ms in result[kind].items()} == {"graph": 2, "enqueue": 2, "wait": 2}
    assert document["results"][-1]["recorded_loops"] == 2
    assert cuda.record.count("launch") == 2 * (loop.WARM_UPS + 2 - 1)
    plot.main(output, toy_bundle.parent / "loop.svg")
    assert (toy_bundle.parent / "loop.svg").read_text().count("<rect") == 2 * 3


def test_the_plan_is_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    workers = [line for line in lines if "benchmarks.gpu.worker" in line]
    assert len(workers) == len(peers.PEERS) * (2 + 2 + 1)
    assert len(lines) == len(workers) + 3 * 5
    for line in workers:
        worker.parser().parse_args(line.split()[3:])
    # The other commands are of scripts whose flags are these.
    from latentc.arguments import parser

    from benchmarks import random_checkpoint
    from export import cli as export_cli

    for line in set(lines) - set(workers):
        words = line.split()
        if words[2] == "latentc.cli":
            parser().parse_args(words[3:])
        elif words[2] == "export":
            export_cli.parser().parse_args(words[3:])
        else:
            assert words[2] == random_checkpoint.__name__
            assert words[3] in ("dit-xl-2", "flux-4")


def test_a_dit_draws_the_size_that_its_configuration_says(tmp_path: Path) -> None:
    path = tmp_path / "transformer/config.json"
    path.parent.mkdir()
    path.write_text('{"sample_size": 32}')
    peers.set_size(tmp_path, peers.CASES["dit-512"])
    assert json.loads(path.read_text()) == {"sample_size": 64}
    peers.set_size(tmp_path, peers.CASES["flux"])
    assert json.loads(path.read_text()) == {"sample_size": 64}


WORKER = """
import json, sys
if sys.argv[1] == "broken":
    print(json.dumps({"error": "OutOfMemoryError"})); sys.exit()
if sys.argv[1] == "dies":
    sys.exit(5)
print(json.dumps({"what": sys.argv[1]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"request_ms": float(line) + 1, "step_ms": 0.5, "device_memory_bytes": 7}), flush=True)
"""


def test_peers_take_turns_and_failures_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(peers, "worker", lambda name, peer, batch, work: [sys.executable, str(script), peer])
    found = peers.interleaved("dit-256", ["one", "broken", "other", "dies"], 2, tmp_path, 3)
    assert found["broken"] == {"error": "OutOfMemoryError"}
    assert found["dies"] == {"error": "the process ended with code 5"}
    for peer in ("one", "other"):
        assert found[peer]["request_ms"].count == 3
        assert found[peer]["request_ms"].p50 == peers.WARM_UPS + 2
        assert found[peer]["images_per_s"] == pytest.approx(2 / ((peers.WARM_UPS + 2) / 1e3))
        assert found[peer]["device_memory_bytes"] == 7
    results = [{"case": "dit-256", "batch": 2, "steps": 50, "peers": found}]
    (tmp_path / "peers.json").write_bytes(msgspec.json.encode({"results": results}))
    plot.main(tmp_path / "peers.json", tmp_path / "peers.svg")
    assert (tmp_path / "peers.svg").read_text().count("<rect") == 2


@pytest.mark.parametrize("peer", ["graph", "enqueue", "wait"])
def test_a_worker_of_latentc_draws(machine: Machine, toy_bundle: Path, peer: str) -> None:  # noqa: F811
    machine("10.3.0")
    session = built(toy_bundle)
    flags = ["--bundle", str(toy_bundle), "--steps", "4", "--solver", "plain", "--batch", "2"]
    draw, what = worker.latentc_peer(worker.parser().parse_args([peer, *flags]))
    assert what == "tensorrt 10.3.0"
    for seed in (1, 2, 3):
        answer = draw(seed)
        assert 0 < answer["step_ms"] * request_for(session).table.calls <= answer["request_ms"] * 1.01


def test_where_names_no_host(machine: Machine) -> None:  # noqa: F811
    machine("10.3.0")
    found = where()
    assert found["compute_capability"] == "8.7"
    assert found["cuda"] == "driver 12.6, runtime 12.4"
    assert "numpy" in found["versions"]
    assert why_no_gpu() is None
    assert open_backend("tensorrt", options=EngineOptions()).name == "tensorrt 10.3.0"


def test_a_bundle_travels_without_its_weights(random_dit_bundle: Path, tmp_path: Path) -> None:
    from latentc.bundle import open_bundle
    from latentc.session import open_session

    from benchmarks.gpu import carry

    packed, sizes = tmp_path / "packed", []
    carry.main(["pack", str(random_dit_bundle), str(packed)])
    assert not list(packed.rglob("*.weights"))
    for name in ("one", "other"):
        carry.main(["unpack", str(packed), str(tmp_path / name)])
        sizes.append(open_bundle(tmp_path / name).model_hash)
    assert sizes[0] == sizes[1], "the same numbers each time"
    before, after = (open_bundle(path).manifest for path in (random_dit_bundle, tmp_path / "one"))
    assert before.graphs == after.graphs
    weights = {file for file in before.files if file.endswith(".weights")}
    assert {file for file in before.files if before.files[file] != after.files[file]} == weights
    session = open_session(tmp_path / "one", "onnxruntime", threads=1)
    picture = session.draw(request_for(session), 1)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.01


def test_a_checkpoint_is_made_only_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(peers.subprocess, "run", lambda command, **_: ran.append(command[2]))
    monkeypatch.setattr(peers, "set_size", lambda source, case: None)
    peers.prepare("dit-256", tmp_path, ["graph"])
    assert ran == ["benchmarks.random_checkpoint", "export", "export"]
    for name in ("dit-256", "dit-256-whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    ran.clear()
    peers.prepare("dit-256", tmp_path, ["graph", "whole"])
    assert ran == []
    peers.prepare("dit-256", tmp_path, ["graph", "eager"])
    assert ran == ["benchmarks.random_checkpoint"]


def test_a_bare_python_runs_a_module_of_the_checkout(tmp_path: Path) -> None:
    bare = Path(__file__).parents[2] / "benchmarks/gpu/bare.py"
    command = [sys.executable, str(bare), "benchmarks.gpu.peers", "--plan", "--case", "flux"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "benchmarks.gpu.worker graph" in done.stdout
