"""The commands as a user meets them: results, exit codes, and exactly one line for each mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc import __version__
from latentc.cli import main
from latentc.schema import Figure, Parity
from latentc.trajectory import noise_from_seed
from PIL import Image

from tests.runtime import toy


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        """The JSON document in the last line of stdout."""
        document: dict[str, object] = json.loads(self.out.splitlines()[-1])
        return document


Latentc = Callable[..., Result]


@pytest.fixture
def latentc(capfd: pytest.CaptureFixture[str]) -> Latentc:
    def run(*arguments: str | Path) -> Result:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse: --help, --version, usage
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image)


def expected_pixels(
    seed: int, labels: tuple[int, ...], cfg: float = 2.0, solver: str = "plain", steps: int = 4
) -> toy.Floats:
    table = toy.table_of(solver, steps)
    noise = noise_from_seed(seed, (len(labels), toy.CHANNELS, toy.SIZE, toy.SIZE), table.noise_draws).draws
    image = toy.toy_trajectory(toy.toy_model(), table, noise, labels, cfg)
    return image.transpose(0, 2, 3, 1) * 255


def test_sample_draws_the_picture_of_the_seed(latentc: Latentc, pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = latentc(
        "sample", pristine, "--label", "food-fruit", "-s", 7, "--solver", "sde", "--steps", 3, "-o", out, "--json"
    )
    assert (done.code, done.err) == (0, "")
    expected = expected_pixels(7, (2,), solver="sde", steps=3)[0]
    assert expected.std() > 10
    np.testing.assert_allclose(pixels_of(out), expected, rtol=0, atol=0.51)
    document = done.document
    timings = document.pop("timings_ms")
    assert isinstance(timings, dict)
    assert list(timings) == ["open", "load", "prepare", "denoise", "decode", "write", "total"]
    assert timings["total"] == pytest.approx(sum(timings.values()) - timings["total"], abs=0.1)
    model_hash = document.pop("model_hash")
    assert str(document.pop("backend")).startswith("onnxruntime ")
    assert document == {
        "images": [str(out)], "seed": 7, "steps": 3, "solver": "sde", "cfg_scale": 2.0, "label": "food-fruit",
        "labels": [2], "guidance": None, "prompts": [], "negative_prompts": None, "notices": [], "width": 8,
        "height": 8, "model": "toy", "engines": False, "memory": "normal", "tile": None, "cache": None, "calls": 3,
        "cached_calls": 0,
    }  # fmt: skip
    with Image.open(out) as image:
        assert image.info["parameters"] == (
            f"food-fruit\nSteps: 3, Sampler: sde, CFG scale: 2, Seed: 7, Size: 8x8, Model hash: {model_hash}, "
            f"Model: toy, Version: latentc {__version__}"
        )


def test_several_pictures_as_a_grid_or_as_files(latentc: Latentc, pristine: Path, tmp_path: Path) -> None:
    expected = expected_pixels(5, (0, 0, 0))
    out = tmp_path / "a.png"
    assert latentc("sample", pristine, "--label", "cat", "-s", 5, "-b", 3, "-o", out).code == 0
    drawn = pixels_of(out)
    assert drawn.shape == (16, 16, 3)
    for i, cell in enumerate((drawn[:8, :8], drawn[:8, 8:], drawn[8:, :8])):
        np.testing.assert_allclose(cell, expected[i], rtol=0, atol=0.51)
    done = latentc("sample", pristine, "--label", "cat", "-s", 5, "-b", 3, "-o", out, "--separate", "--json")
    assert done.document["images"] == [str(tmp_path / f"a-00{i}.png") for i in range(3)]
    for i in range(3):
        np.testing.assert_allclose(pixels_of(tmp_path / f"a-00{i}.png"), expected[i], rtol=0, atol=0.51)
    with Image.open(tmp_path / "a-002.png") as image:
        assert "Batch size: 3, Batch pos: 2" in image.info["parameters"]


def test_without_a_seed_it_is_random_and_reported(latentc: Latentc, pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    seeds = [latentc("sample", pristine, "--label", "cat", "-o", out, "--json").document["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    again = pixels_of(out)
    latentc("sample", pristine, "--label", "cat", "-s", seeds[1], "-o", out)
    np.testing.assert_array_equal(pixels_of(out), again)


def test_no_metadata(latentc: Latentc, pristine: Path, tmp_path: Path) -> None:
    assert latentc("sample", pristine, "--label", "cat", "-o", tmp_path / "a.png", "--no-metadata").code == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.info == {}


def test_given_latents_replace_the_initial_noise(latentc: Latentc, pristine: Path, tmp_path: Path) -> None:
    first = np.random.default_rng(1).normal(size=(2, toy.CHANNELS, toy.SIZE, toy.SIZE))
    np.save(tmp_path / "noise.npy", first)
    out = tmp_path / "a.png"
    flags = ("--label", "dog", "-s", 4, "--solver", "sde", "--steps", 3, "--separate", "-o", out)
    assert latentc("sample", pristine, "--latents", tmp_path / "noise.npy", *flags).code == 0
    table = toy.table_of("sde", 3)
    noise = noise_from_seed(4, first.shape, 3, first.astype(np.float32)).draws
    expected = toy.toy_trajectory(toy.toy_model(), table, noise, (1, 1), 2.0).transpose(0, 2, 3, 1) * 255
    for i in range(2):
        np.testing.assert_allclose(pixels_of(tmp_path / f"a-00{i}.png"), expected[i], rtol=0, atol=0.51)


def test_build_is_incremental_and_used(latentc: Latentc, bundle: Path, tmp_path: Path) -> None:
    first, second, forced = (latentc("build", bundle, "--json", *flags) for flags in ((), (), ("--force",)))
    assert [result.document["built"] for result in (first, second, forced)] == [True, False, True]
    assert "up to date" in latentc("build", bundle, "--backend", "onnxruntime").out
    flags = ("--label", "cat", "-s", 1, "-o", tmp_path / "a.png", "--json")
    used = latentc("sample", bundle, *flags)
    assert (used.document["engines"], used.err) == (True, "")
    (bundle / "engines").rename(bundle.parent / "engines")
    drawn = pixels_of(tmp_path / "a.png")
    assert latentc("sample", bundle, *flags).document["engines"] is False
    np.testing.assert_allclose(pixels_of(tmp_path / "a.png").astype(int), drawn, rtol=0, atol=1)


def test_a_stale_engine_is_said_in_one_line_and_not_used(latentc: Latentc, bundle: Path, tmp_path: Path) -> None:
    latentc("build", bundle)
    engine = next((bundle / "engines").glob("*/denoise.onnx"))
    engine.write_bytes(engine.read_bytes()[:-1])
    done = latentc("sample", bundle, "--label", "cat", "-o", tmp_path / "a.png", "--json")
    assert done.code == 0
    assert done.document["engines"] is False
    assert re.fullmatch(
        r"latentc: the built engines are not used \(denoise.onnx is damaged: .*\); latentc build .*\n", done.err
    )


def test_inspect_shows_everything(latentc: Latentc, pristine: Path) -> None:
    done = latentc("inspect", pristine)
    assert done.code == 0
    for shown in ("toy (DiTPipeline", "food-fruit (2)", "heunScheduler", "3 (5 calls)", "3 (3 draws)", "once a step",
                  "guidance_weights", "[slots, batch, 4, 4, 4]", "160 B", "1 k"):  # fmt: skip
        assert shown in done.out
    document = latentc("inspect", pristine, "--json").document
    manifest = toy.read_manifest(pristine)
    graphs = document["graphs"]
    assert isinstance(graphs, dict)
    for key in ("parameters", "weight_bytes", "flops"):
        assert graphs["denoise"][key] == getattr(manifest.graphs["denoise"], key)
    assert document["num_bytes"] == sum(record.num_bytes for record in manifest.files.values())


def test_verify_passes_on_a_whole_bundle(latentc: Latentc, bundle: Path) -> None:
    done = latentc("verify", bundle)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("ok    ") == 10 + 5
    latentc("build", bundle)
    (bundle / "notes.txt").write_text("mine")
    document = latentc("verify", bundle, "--json").document
    assert document["passed"] is True
    assert document["unlisted"] == ["notes.txt"]
    figures = document["figures"]
    assert isinstance(figures, list)
    assert [figure["tensor"] for figure in figures] == ["denoise/prediction", "decode/image"] * 2 + ["trajectory/image"]
    assert "built engine" in figures[-1]["against"]


def test_verify_fails_where_the_weights_are_not_the_ones_that_were_exported(latentc: Latentc, bundle: Path) -> None:
    path = bundle / "graphs/denoise.weights"
    weights = np.frombuffer(path.read_bytes(), np.float32).copy()
    weights *= 1.01
    path.write_bytes(weights.tobytes())
    toy.seal(bundle, toy.read_manifest(bundle))
    done = latentc("verify", bundle)
    assert done.code == 3
    pattern = r"latentc: error: .*: denoise/prediction: relative_l2 0\.01 is not <= 1e-05 \(.*\) \(and 2 more\)\n"
    assert re.fullmatch(pattern, done.err)
    assert latentc("verify", bundle, "--json").document["passed"] is False


def test_verify_fails_for_nan(latentc: Latentc, bundle: Path) -> None:
    path = bundle / "graphs/decode.weights"
    path.write_bytes(np.full(len(path.read_bytes()) // 4, np.nan, np.float32).tobytes())
    toy.seal(bundle, toy.read_manifest(bundle))
    done = latentc("verify", bundle)
    assert done.code == 3
    assert "decode/image: relative_l2 nan" in done.err
    done = latentc("sample", bundle, "--label", "cat", "-o", bundle.parent / "a.png")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert not (bundle.parent / "a.png").exists()


def test_a_report_that_compares_nothing_does_not_pass(latentc: Latentc, bundle: Path) -> None:
    report = msgspec.json.decode((bundle / "parity.json").read_bytes(), type=Parity)
    for figures, odd in (
        ((), "decode, denoise, trajectory"),
        (report.figures[1:], "denoise"),
        (report.figures[:2], "trajec"),
    ):
        (bundle / "parity.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(report, figures=figures)))
        toy.seal(bundle, toy.read_manifest(bundle))
        done = latentc("verify", bundle)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert f"must compare every graph and the trajectory; look at {odd}" in done.err


def test_verify_compares_the_noise_where_the_report_asks_for_it(latentc: Latentc, bundle: Path) -> None:
    report = msgspec.json.decode((bundle / "parity.json").read_bytes(), type=Parity)
    noise = Figure(tensor="trajectory/noise", measure="relative_l2", value=0, bound=1e-6, against="torch")
    changed = msgspec.structs.replace(report, figures=(*report.figures, noise))
    (bundle / "parity.json").write_bytes(msgspec.json.encode(changed))
    toy.seal(bundle, toy.read_manifest(bundle))
    done = latentc("verify", bundle)  # the toy's noise is numpy's, not torch's
    assert done.code == 3
    assert re.search(r"trajectory/noise: relative_l2 1\.\d+ is not <= 1e-06 \(torch's generator\)", done.err)


def test_verify_names_every_damaged_file(latentc: Latentc, bundle: Path) -> None:
    for name in ("graphs/decode.onnx", "tables/sde-3.safetensors"):
        (bundle / name).write_bytes((bundle / name).read_bytes() + b"\0")
    done = latentc("verify", bundle)
    assert done.code == 1
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("FAIL")] == [
        "graphs/decode.onnx",
        "tables/sde-3.safetensors",
    ]
    assert re.fullmatch(r"latentc: error: .*graphs/decode.onnx is damaged: .* \(and 1 more\); .*\n", done.err)


@pytest.mark.parametrize(
    ("part", "field", "value", "line"),
    [
        ("latent", "channels", 5, "graph denoise cannot be run: "),
        ("latent", "height", 8, "the manifest has sizes of latents and image that do not fit each other"),
        ("image", "height", 16, "the manifest has sizes of latents and image that do not fit each other"),
        ("image", "width", 4, "the manifest has sizes of latents and image that do not fit each other"),
        ("image", "channels", 1, "graph decode returns [4, 3, 8, 8], which is not the manifest's picture"),
    ],
)
def test_sizes_that_are_not_the_graphs_own_are_one_line(
    latentc: Latentc, bundle: Path, part: str, field: str, value: int, line: str
) -> None:
    manifest = toy.read_manifest(bundle)
    changed = msgspec.structs.replace(getattr(manifest, part), **{field: value})
    toy.seal(bundle, msgspec.structs.replace(manifest, **{part: changed}))
    done = latentc("sample", bundle, "--label", "cat", "-b", 4, "-o", bundle.parent / "a.png")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert line in done.err


@pytest.mark.parametrize("command", ["sample", "build", "inspect", "verify"])
def test_every_command_refuses_a_damaged_bundle(latentc: Latentc, bundle: Path, command: str) -> None:
    flags = ("--label", "cat", "-o", bundle.parent / "a.png") if command == "sample" else ()
    for name in ("parity.safetensors", "graphs/denoise.weights", "manifest.json"):
        whole = (bundle / name).read_bytes()
        (bundle / name).write_bytes(whole[:20] + bytes([whole[20] ^ 8]) + whole[21:])
        done = latentc(command, bundle, *flags)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert name in done.err
        (bundle / name).write_bytes(whole)
    assert not (bundle.parent / "a.png").exists()


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (["--steps", "7"], 1, "no table for 7 steps of plain; this bundle has 2, 4: export with --steps 7"),
        (["--solver", "ddim"], 1, "no solver 'ddim'"),
        (["--label", "dgo"], 1, "did you mean dog?"),
        (["-W", "16"], 1, "no size 16x8; toy draws 8x8 only"),
        (["-p", "a cat"], 1, "-p is for text-to-image models"),
        (["--guidance", "3.5"], 1, "--guidance is for guidance-distilled models"),
        (["-s", "-1"], 1, "-s -1 is out of range; give 0 to 18446744073709551615"),
        (["-s", str(2**64)], 1, "is out of range"),
        (["-b", "0"], 1, "-b 0 is out of range"),
        (["--threads", "-1"], 1, "--threads -1 is out of range"),
        (["--backend", "cuda"], 1, "no backend cuda; there are onnxruntime, tensorrt, onnxruntime-cuda and auto"),
        (["-o", "none/a.png"], 1, "there is no directory none; make it first"),
        (["-o", "a.jpg"], 1, "give a name that ends in .png"),
        (["--latents", "none.npy"], 1, "--latents none.npy: cannot be read"),
        (["--cfg-scale", "nan"], 1, "--cfg-scale nan is out of range"),
        (["--steps", "x"], 2, "argument --steps: invalid int value: 'x'"),
        (["--stepz", "4"], 2, "unrecognized arguments: --stepz 4"),
        (["--st", "4"], 2, "unrecognized arguments: --st 4"),
    ],
)
def test_mistakes_get_one_line(
    latentc: Latentc,
    pristine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    code: int,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = latentc("sample", pristine, "--label", "cat", *flags)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("latentc: error: ")
    assert done.err.count("\n") == 1
    assert line in done.err
    assert list(tmp_path.iterdir()) == []


def test_usage(latentc: Latentc) -> None:
    assert latentc("--version") == Result(0, f"latentc {__version__}\n", "")
    for arguments in ((), ("paint",), ("sample",)):
        done = latentc(*arguments)
        assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--cfg-scale" in latentc("sample", "--help").out


def start(*arguments: str | Path, before: str = "") -> subprocess.Popen[str]:
    code = f"{before}\nimport sys; from latentc.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_closed_pipe_is_no_traceback(pristine: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from latentc.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "inspect", str(pristine)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_is_quiet_and_leaves_nothing(pristine: Path, tmp_path: Path) -> None:
    # A job in the background of a shell inherits an ignored SIGINT, and Python then leaves it ignored.
    slow = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time; from pathlib import Path; from latentc.backends.onnxruntime import OnnxRuntimeEngine\n"
        f"def run(self): Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(300)\n"
        "OnnxRuntimeEngine.run = run"
    )
    process = start("sample", pristine, "--label", "cat", "-o", tmp_path / "a.png", before=slow)
    deadline = time.monotonic() + 120  # a busy machine takes long to start it
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline, "the loop never began"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]
