"""`--cache` from a source to a picture: shared weights, gated levels, refusals before any work."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latentc.bundle import open_bundle
from latentc.cli import main as latentc
from latentc.parity import psnr_db
from latentc.request import Asked, resolve
from latentc.session import open_session

from export.cli import main
from export.pipeline import ExportOptions, export_bundle
from export.step_cache.levels import LEVELS, MARGIN_DB
from tests.pipelines.stable_diffusion import make_stable_diffusion
from tests.sources import write_random_dit

STEPS = (4, 10)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_dit(tmp_path_factory.mktemp("sources") / "dit-of-four", layers=4)


@pytest.fixture(scope="module")
def options(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    return ExportOptions(
        source=str(source), output=tmp_path_factory.mktemp("bundles") / "cached", steps=STEPS, cache=True
    )


@pytest.fixture(scope="module")
def bundle(options: ExportOptions) -> Path:
    export_bundle(options)
    return options.output


@pytest.fixture(scope="module")
def plain(options: ExportOptions, bundle: Path) -> Path:
    output = bundle.parent / "plain"
    export_bundle(replace(options, output=output, cache=False))
    return output


def draw(root: Path, level: str | None, steps: int = 10) -> np.ndarray:
    session = open_session(root, "onnxruntime", threads=1)
    label = min(session.bundle.manifest.conditioning.labels)  # type: ignore[union-attr]
    return session.draw(resolve(session.bundle.manifest, Asked(label=label, count=2, steps=steps, cache=level)), 3)


def test_the_weights_are_there_once(bundle: Path, plain: Path) -> None:
    manifests = [open_bundle(root).manifest for root in (bundle, plain)]
    weights = [{f: r for f, r in m.files.items() if f.endswith(".weights")} for m in manifests]
    assert weights[0] == weights[1], "the same files, to the byte, and none beside them"
    graph = manifests[0].graphs["denoise_cached"]
    assert graph.weights == "graphs/denoise.weights"
    assert graph.flops < 0.6 * manifests[0].graphs["denoise"].flops
    assert graph.runs_once_per == "step"


def test_without_a_level_the_picture_has_the_same_bits(bundle: Path, plain: Path) -> None:
    for steps in STEPS:
        np.testing.assert_array_equal(draw(bundle, None, steps), draw(plain, None, steps))


def test_levels_are_qualities_and_gate_the_export(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.step_cache is not None
    assert opened.manifest.step_cache.levels == dict(LEVELS)
    counts = []
    for table in opened.manifest.tables:
        for level, least in LEVELS.items():
            cached = table.cached[level]
            assert cached.psnr_db >= least + MARGIN_DB
            counts.append(len(cached.calls))
    assert max(counts) > 0, "something is cached, or nothing is tested"
    figures = {figure.tensor: figure for figure in opened.parity().figures}
    for level, least in LEVELS.items():
        figure = figures[f"trajectory/image@{level}"]
        assert (figure.measure, figure.bound) == ("psnr_db", least)
        assert figure.holds
        assert figures[f"trajectory/full_steps@{level}"].bound < least
    assert figures["denoise_cached/prediction"].value <= 1e-5
    assert figures["denoise/residual_0"].value <= 1e-5


def test_a_level_changes_the_picture_and_little(bundle: Path) -> None:
    full = draw(bundle, None)
    table = next(table for table in open_bundle(bundle).manifest.tables if table.steps == 10)
    for level in LEVELS:
        value = psnr_db(draw(bundle, level), full)
        assert (value < 150.0) == bool(table.cached[level].calls)
        assert value > 15.0


def test_latentc_verify_repeats_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latentc(["verify", str(bundle), "--backend", "onnxruntime"]) == 0
    shown = capsys.readouterr().out
    assert "trajectory/image@slight: psnr_db" in shown
    assert "denoise_cached/prediction: relative_l2" in shown


def test_latentc_verify_catches_a_level_below_its_bound(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy's middle changes so little that no schedule spoils its picture: the bound is what is moved."""
    root = Path(shutil.copytree(bundle, tmp_path / "b"))
    parity = json.loads((root / "parity.json").read_text())
    (figure,) = (f for f in parity["figures"] if f["tensor"] == "trajectory/image@slight")
    figure["bound"] = 150.0
    report = json.dumps(parity).encode()
    (root / "parity.json").write_bytes(report)
    assert latentc(["verify", str(root), "--backend", "onnxruntime"]) == 1  # its hash
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"]["parity.json"] = {"sha256": hashlib.sha256(report).hexdigest(), "num_bytes": len(report)}
    data = json.dumps(manifest).encode()
    (root / "manifest.json").write_bytes(data)
    (root / "manifest.json.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  manifest.json\n")
    assert latentc(["verify", str(root), "--backend", "onnxruntime"]) == 3  # and its quality
    assert "trajectory/image@slight" in capsys.readouterr().err


def test_an_export_that_was_killed_keeps_what_calibration_chose(
    options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(options, output=tmp_path / "b")
    with monkeypatch.context() as patched:
        patched.setattr("export.pipeline.verify_graphs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_bundle(mine)
    monkeypatch.setattr("export.pipeline.calibrated", lambda *_: pytest.fail("calibrated again"))
    manifest = export_bundle(mine)
    whole = msgspec.json.decode((options.output / "manifest.json").read_bytes())
    assert msgspec.json.decode(msgspec.json.encode(manifest.tables)) == whole["tables"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    return errors[0]


def test_refusals_are_one_line_before_any_trace(
    source: Path, random_dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.pipeline.trace_step", lambda *_: pytest.fail("traced before the input was checked"))
    output = ["--output", str(tmp_path / "b"), "--cache", "--steps", "2"]
    u_net = make_stable_diffusion(tmp_path / "sd")
    found = refused([str(u_net), *output], capsys)
    assert "steps of StableDiffusionPipeline cannot be cached: it has no one stream of blocks to cut" in found
    assert "2 blocks; transformers of 3 blocks and more can" in refused([str(random_dit), *output], capsys)
    monkeypatch.setattr("export.reach.Reach.runs_trajectory", property(lambda _: False))
    found = refused([str(source), *output], capsys)
    assert "--cache draws whole pictures, and all weights take" in found
    assert "give a larger --memory, or leave --cache away" in found
    assert not (tmp_path / "b").exists()
