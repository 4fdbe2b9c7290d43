"""The whole compiler on a source with random weights: source → bundle → picture, against diffusers."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.torch
from latentc.bundle import open_bundle
from latentc.errors import ParityError
from latentc.parity import psnr_db
from latentc.schema import Manifest, TensorSpec

from export.graph_files import WrittenGraph, write_graphs
from export.pipeline import ExportOptions, export_bundle
from export.solvers import solver_from_name
from export.verify import Bounds
from models.components import load_scheduler
from models.dit.reference import reference_image
from models.latent_diffusion import ReferenceRequest, SourceError
from tests.conftest import SOLVERS
from tests.drawing import draw
from tests.sources import write_random_dit


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("cfg_scale", "labels"), [(4.0, (1, 7, 0)), (1.0, (7,))])
def test_same_seed_same_picture_as_diffusers(
    random_dit: Path, random_dit_bundle: Path, solver: str, cfg_scale: float, labels: tuple[int, ...]
) -> None:
    request = ReferenceRequest(labels=labels, seed=11, steps=10, cfg_scale=cfg_scale)
    scheduler = solver_from_name(solver, load_scheduler(random_dit)).fresh()
    expected = reference_image(random_dit, scheduler, request).numpy()
    actual = draw(random_dit_bundle, solver, 10, request)
    assert psnr_db(actual, expected, peak=1.0) >= 60.0
    assert expected.std() > 0.02  # not one flat colour


def test_label_seed_and_guidance_each_change_the_picture(random_dit_bundle: Path) -> None:
    """Random weights could make the comparison above a comparison of constants; they do not."""
    base = ReferenceRequest(labels=(1,), seed=11, steps=10, cfg_scale=4.0)
    picture = draw(random_dit_bundle, "ddim", 10, base)
    for other in (
        ReferenceRequest(labels=(7,), seed=11, steps=10, cfg_scale=4.0),
        ReferenceRequest(labels=(1,), seed=12, steps=10, cfg_scale=4.0),
        ReferenceRequest(labels=(1,), seed=11, steps=10, cfg_scale=1.5),
    ):
        assert psnr_db(draw(random_dit_bundle, "ddim", 10, other), picture, peak=1.0) < 30.0


def test_manifest_says_what_is_there(random_dit_bundle: Path) -> None:
    manifest = open_bundle(random_dit_bundle).manifest
    assert (manifest.family, manifest.pipeline) == ("dit", "DiTPipeline")
    assert {(t.solver, t.steps) for t in manifest.tables} == {(s, n) for s in SOLVERS for n in (4, 10)}
    assert manifest.defaults.solver == "ddim"
    assert manifest.defaults.steps == 10  # of 4 and 10, the one that is nearest to the pipeline's own 50
    assert manifest.solvers["heun"].scheduler == "HeunDiscreteScheduler"
    assert manifest.graphs["denoise"].parameters > 10_000
    assert manifest.graphs["denoise"].flops > manifest.graphs["denoise"].parameters
    text = (random_dit_bundle / "manifest.json").read_text()
    assert str(Path.home()) not in text
    assert str(random_dit_bundle.parent) not in text


def test_the_modulation_has_left_the_loop(random_dit_bundle: Path) -> None:
    """DESIGN 2: the adaLN layers and embedders run once a request, and each step reads one row."""
    bundle = open_bundle(random_dit_bundle)
    manifest = bundle.manifest
    assert list(manifest.graphs) == ["schedule", "denoise", "decode"]
    assert manifest.graphs["denoise"].parameters < 0.5 * manifest.hoisting.whole_parameters
    assert "timestep" not in {spec.name for spec in manifest.graphs["denoise"].inputs}
    row = next(spec for spec in manifest.graphs["denoise"].inputs if spec.name == "schedule_row")
    assert row.shape[-1] == manifest.hoisting.row_width > 0
    phases = {(figure.tensor, figure.against.split(":")[0]) for figure in bundle.parity().phases}
    assert phases == {
        ("denoise/prediction", "phase clean"),
        ("decode/image", "phase clean"),
        ("denoise/prediction", "phase hoist"),
    }
    assert all(figure.holds and figure.bound == 1e-6 for figure in bundle.parity().phases)


def test_without_hoisting_it_is_the_same_picture(random_dit: Path, random_dit_bundle: Path, tmp_path: Path) -> None:
    options = ExportOptions(
        source=str(random_dit), output=tmp_path / "whole", solvers=("ddim",), steps=(4,), hoist=False
    )
    manifest = export_bundle(options)
    assert list(manifest.graphs) == ["denoise", "decode"]
    # A fused attention holds its scale as an attribute: one constant less.
    assert manifest.hoisting.whole_parameters - manifest.graphs["denoise"].parameters in (0, 1)
    request = ReferenceRequest(labels=(1, 7), seed=2, steps=4, cfg_scale=3.0)
    whole, hoisted = (draw(path, "ddim", 4, request) for path in (tmp_path / "whole", random_dit_bundle))
    assert psnr_db(whole, hoisted, peak=1.0) >= 100.0


def test_half_precision_for_tensorrt_8_6(random_dit: Path, tmp_path: Path) -> None:
    """Opset 17, weights and loop in float16, history and prediction in float32, and what was done where in the dump."""
    options = ExportOptions(
        source=str(random_dit), output=tmp_path / "b", steps=(4,), precision="fp16", target="tensorrt-8.6",
        dump=tmp_path / "dump",
    )  # fmt: skip
    manifest = export_bundle(options)
    assert (manifest.precision, manifest.target) == ("fp16", "tensorrt-8.6")
    bundle = open_bundle(tmp_path / "b")
    figures = {figure.tensor: figure for figure in bundle.parity().figures}
    assert 1e-5 < figures["denoise/prediction"].value <= 1e-2  # half precision really was used, and holds its bound
    assert figures["trajectory/image"].value >= 35.0
    assert all(spec.dtype == "float32" for name in ("history", "prediction") for spec in _specs(manifest, name))
    denoise = onnx.load_from_string(bytes(bundle.view("graphs/denoise.onnx")))
    assert [(opset.domain, opset.version) for opset in denoise.opset_import] == [("", 17)]
    held = {tensor.data_type for tensor in denoise.graph.initializer if tensor.external_data}
    assert onnx.TensorProto.FLOAT16 in held
    table = (tmp_path / "dump" / "4-final" / "denoise.half.tsv").read_text()
    assert "softmax: exp and its sum" in table
    assert "parameters in the loop" in (tmp_path / "dump" / "3-hoist" / "partition.txt").read_text()


def test_a_weight_that_half_cannot_hold_is_named_and_kept_wide(
    random_dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1e5 in a projection, multiplied by a zero of the layer before it: the numbers stay, half would be inf."""
    source = shutil.copytree(random_dit, tmp_path / "source")
    path = source / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    block = "transformer_blocks.0.attn1"
    tensors[f"{block}.to_v.weight"][0] = 0.0
    tensors[f"{block}.to_v.bias"][0] = 0.0
    tensors[f"{block}.to_out.0.weight"][0, 0] = 1e5
    safetensors.torch.save_file(tensors, path)
    export_bundle(ExportOptions(source=str(source), output=tmp_path / "b", steps=(2,), precision="fp16"))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("export: note: ")]
    assert len(notes) == 1
    assert "to_out.0.weight: 1 of 1024 elements overflow float16" in notes[0]


def _specs(manifest: Manifest, name: str) -> list[TensorSpec]:
    graphs = manifest.graphs.values()
    return [spec for graph in graphs for spec in (*graph.inputs, *graph.outputs) if spec.name == name]


def test_graphs_hold_no_path_of_this_machine(random_dit_bundle: Path, repository: Path) -> None:
    for graph in random_dit_bundle.glob("graphs/*.onnx"):
        data = graph.read_bytes()
        assert str(repository).encode() not in data
        assert b"site-packages" not in data


def test_equal_exports_are_equal_bytes(random_dit: Path, random_dit_bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    export_bundle(ExportOptions(source=str(random_dit), output=again, solvers=SOLVERS, steps=(4, 10)))

    def digests(root: Path) -> dict[str, str]:
        files = (p for p in root.rglob("*") if p.is_file() and "engines" not in p.parts)
        return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    assert digests(again) == digests(random_dit_bundle)


@pytest.mark.parametrize(
    ("module", "tensor"), [("norm1.linear", "schedule/rows"), ("attn1.to_v", "denoise/prediction")]
)
def test_a_weight_changed_by_one_percent_fails_the_gate(
    random_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, tensor: str
) -> None:
    """The negative control: torch keeps the true weight, the graph gets another."""

    def write_after_a_change(
        directory: Path, graphs: Mapping[str, ir.Model], work: Path | None, shared: Mapping[str, str]
    ) -> dict[str, WrittenGraph]:
        for graph in graphs.values():
            for name, value in graph.graph.initializers.items():
                if name.endswith(f"transformer_blocks.0.{module}.weight"):
                    assert value.const_value is not None
                    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=name)
        return write_graphs(directory, graphs, work, shared)

    monkeypatch.setattr("export.pipeline.write_graphs", write_after_a_change)
    with pytest.raises(ParityError, match=rf"{tensor}: relative_l2 is .*, must be at most 1e-05"):
        export_bundle(ExportOptions(source=str(random_dit), output=tmp_path / "bundle", steps=(2,)))
    assert list(tmp_path.iterdir()) == []


def test_a_missed_image_bound_fails_the_gate_and_keeps_the_old_bundle(random_dit: Path, tmp_path: Path) -> None:
    options = ExportOptions(source=str(random_dit), output=tmp_path / "bundle", steps=(2,))
    export_bundle(options)
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    impossible = Bounds(relative_l2=1e-5, psnr_db=1000.0)
    with pytest.raises(ParityError, match=r"trajectory/image: psnr_db is .*, must be at least 1000"):
        export_bundle(ExportOptions(source=str(random_dit), output=tmp_path / "bundle", steps=(2,), bounds=impossible))
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_guidance_on_some_channels_and_fixed_variance_export_too(tmp_path: Path) -> None:
    source = write_random_dit(tmp_path / "plain", learned_sigma=False, prediction="v_prediction")
    manifest = export_bundle(ExportOptions(source=str(source), output=tmp_path / "bundle", steps=(2,)))
    assert open_bundle(tmp_path / "bundle").parity().figures[0].holds
    assert manifest.solvers["ddim"].settings["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("content", ["a file", "a directory"])
def test_never_replaces_what_is_no_bundle(random_dit: Path, tmp_path: Path, content: str) -> None:
    output = tmp_path / "mine"
    if content == "a file":
        output.write_text("precious")
    else:
        output.mkdir()
        (output / "precious").write_text("precious")
    with pytest.raises(SourceError, match="give --output a new path or an older bundle"):
        export_bundle(ExportOptions(source=str(random_dit), output=output, steps=(2,)))
    assert output.exists()


def test_an_unknown_pipeline_is_refused_with_the_known_ones(random_dit: Path, tmp_path: Path) -> None:
    source = shutil.copytree(random_dit, tmp_path / "other")
    (source / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(SourceError, match=r"pipeline class 'KandinskyPipeline' is not known; known: DiTPipeline"):
        export_bundle(ExportOptions(source=str(source), output=tmp_path / "bundle"))


def test_kill_at_any_moment_leaves_no_bundle_or_the_old_one(
    random_dit: Path, random_dit_bundle: Path, tmp_path: Path, python_path: dict[str, str]
) -> None:
    """kill -9 at moments spread over the phases; tests/export/test_stage.py does it to the rename itself."""
    bundle = shutil.copytree(random_dit_bundle, tmp_path / "bundle")
    before = (bundle / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "export", str(random_dit), "--output", str(bundle), "--steps", "2"]
    for phase in ("load", "probe", "trace", "verify"):
        process = subprocess.Popen(command, env=python_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(phase):
                break
        else:
            pytest.fail(f"the export never reported {phase}")
        time.sleep(0.02)
        process.kill()
        process.wait()
        process.stderr.close()
        open_bundle(bundle)  # whole, every hash right
        assert (bundle / "manifest.json").read_bytes() == before or phase == "verify"
