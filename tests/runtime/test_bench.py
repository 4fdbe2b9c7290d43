"""latentc bench on the CPU: what it measures adds up, and what it is given wrong is one line."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from latentc.bench import ceilings
from latentc.bench.onnx_writer import one_operator
from latentc.bench.requests import percentiles
from latentc.cli import main
from latentc.lanes import Lanes
from latentc.request import Asked, resolve
from latentc.session import open_session


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SIDE", {"host": 64, "device": 64})
    monkeypatch.setattr(ceilings, "_COPIED_BYTES", {"host": 1 << 20, "device": 1 << 20})


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["bench", *(str(argument) for argument in arguments), "--threads", "1"])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_document(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--json", "--batch", "1,3", "--repeat", "2", "--steps", "2")
    code, out, err = bench(capsys, bundle, *flags)
    assert (code, err) == (0, "")
    report = msgspec.json.decode(out.splitlines()[-1])
    assert (report["solver"], report["steps"], report["calls"], report["engines"]) == ("plain", 2, 2, False)
    rate = report["ceilings"]["matrix_flops_per_s"]
    assert rate > 0
    assert [batch["timings"]["batch"] for batch in report["batches"]] == [1, 3]
    for batch in report["batches"]:
        timings, share = batch["timings"], batch["share"]
        assert timings["step_ms"]["count"] == 2 * 2
        assert timings["images_per_s"] == pytest.approx(timings["batch"] / timings["request_ms"]["p50"] * 1e3)
        assert share["flops"] == 1000 * timings["batch"] * 2  # the toy's FLOPs, two branches
        history = 4 * 3 * timings["batch"] * 4 * 4 * 4
        assert share["bytes"] == 160 + history
        assert share["of_matrix_rate"] == pytest.approx(share["flops"] / (timings["step_ms"]["p50"] / 1e3) / rate)
    main(["build", str(bundle), "--threads", "1"])
    capsys.readouterr()
    report = msgspec.json.decode(bench(capsys, bundle, *flags)[1].splitlines()[-1])
    assert report["engines"]
    assert report["engine_bytes"] > 0


def test_the_table(pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = bench(capsys, pristine, "--batch", "2", "--repeat", "1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("toy fp32 (")
    assert "GFLOP/s (float32 product of 64)" in lines[2]
    assert lines[5].split()[0] == "2"
    assert len(lines[4].replace("step p50", "step").replace("request p50", "request").split()) >= 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "two"], "--batch two is no list of numbers; give one such as 1,2,4,8"),
        (["--batch", "0"], "--batch 0 is out of range; give 1 to 1024"),
        (["--repeat", "0"], "--repeat 0 is out of range; give 1 or more"),
        (["--steps", "7"], "no table for 7 steps of plain"),
        (["-W", "64"], "no size 64x8; toy draws 8x8 only"),
    ],
)
def test_mistakes_get_one_line(
    pristine: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    code, out, err = bench(capsys, pristine, *flags)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert message in err


def test_percentiles() -> None:
    found = percentiles([float(value) for value in range(101)])
    assert (found.p50, found.p90, found.p99, found.count) == (50, 90, 99, 101)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_models_of_the_ceilings_are_valid(dtype: str) -> None:
    graph = one_operator("big", "MatMul", [(300, 2), (2, 5)], (300, 5), dtype)
    model = onnx.load_model_from_string(bytes(graph.model))
    onnx.checker.check_model(model, full_check=True)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [300, 2]
    assert model.graph.node[0].op_type == "MatMul"


def test_lanes_of_the_cpu_have_bindings_of_their_own(pristine: Path) -> None:
    session = open_session(pristine, "onnxruntime", threads=1)
    request = resolve(session.bundle.manifest, Asked(label="cat", steps=4))
    expected = [session.draw(request, seed) for seed in (1, 2)]
    lanes = Lanes(session, 2)
    with lanes.session() as one, lanes.session() as other:
        from latentc.session import trajectory_of_request

        samplings = [s.sampling(trajectory_of_request(s.bundle, request, seed)) for seed, s in ((1, one), (2, other))]
        for _ in zip(*(sampling.steps() for sampling in samplings), strict=True):
            pass
        for sampling, picture in zip(samplings, expected, strict=True):
            np.testing.assert_array_equal(sampling.decode(), picture)
    with pytest.raises(ValueError, match="0 lanes are out of range"):
        Lanes(session, 0)
