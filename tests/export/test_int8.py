"""`--precision int8` from a source to a bundle: what is int8, what the report says, and what refuses."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from latentc.bundle import open_bundle
from latentc.cli import main as latentc
from latentc.errors import ParityError
from latentc.tensors import tensors_from_bytes

from export.cli import main
from export.pipeline import ExportOptions, export_bundle
from export.verify import Bounds
from models.latent_diffusion import SourceError
from tests.sources import write_random_dit

WIDTH = 128  # the narrowest whose matrices are worth it


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_dit(tmp_path_factory.mktemp("int8") / "dit", width=WIDTH)


def small(source: Path, output: Path, **options: object) -> ExportOptions:
    return ExportOptions(source=str(source), output=output, steps=(2,), precision="int8", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8") / "dump"


@pytest.fixture(scope="module")
def bundle(source: Path, dump: Path) -> Path:
    export_bundle(small(source, dump.parent / "bundle", dump=dump))
    return dump.parent / "bundle"


NUM_MATRICES = 2 * 6
ELEMENTS = 2 * (
    4 * WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH
)  # two blocks of four square matrices, and two four times that


def kept_layers(dump: Path) -> list[str]:
    """The names of the layers that the dump says stayed, each with its reason."""
    rows = [line.split("\t") for line in (dump / "4-final/denoise.int8.tsv").read_text().splitlines()[2:]]
    assert len(rows) == NUM_MATRICES
    return [name for name, _, _, reason in rows if reason]


def test_loop_and_decoder_are_int8_and_the_rest_is_not(bundle: Path, dump: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert (manifest.precision, manifest.target) == ("int8", "onnxruntime")
    stored = {
        name: {v.const_value.dtype for v in ir.load(bundle / f"graphs/{name}.onnx").graph.initializers.values()}
        for name in manifest.graphs
    }
    assert {name for name, dtypes in stored.items() if ir.DataType.INT8 in dtypes} == {"denoise", "decode"}
    operators = [node.op_type for node in ir.load(bundle / "graphs/decode.onnx").graph]
    assert operators.count("QLinearConv") >= 1  # the toy has narrow ones beside it
    assert operators.count("Conv") >= 2  # the first reads latents, the last makes the picture
    loop = manifest.graphs["denoise"]
    kept = sum(WIDTH * WIDTH * (4 if ".ff." in name else 1) for name in kept_layers(dump))
    assert loop.int8_bytes == ELEMENTS - kept
    assert ELEMENTS < loop.parameters < 1.1 * ELEMENTS
    assert loop.int8_bytes > ELEMENTS / 2
    assert loop.weight_bytes < loop.int8_bytes + 4 * (kept + 0.1 * ELEMENTS)
    assert all(spec.dtype == "float32" for spec in (*loop.inputs, *loop.outputs))


def test_the_report_has_the_picture_of_fp32_and_bounds_for_each_graph(bundle: Path) -> None:
    parity = open_bundle(bundle).parity()
    figures = {figure.tensor: figure for figure in parity.figures}
    assert figures["trajectory/image"].bound == figures["trajectory/image_of_fp32"].bound == 35
    assert figures["trajectory/image_of_fp32"].against == "the fp32 graphs, same seed"
    assert figures["trajectory/image"].value < 100  # it is not fp32
    assert (figures["denoise/prediction"].bound, figures["decode/image"].bound) == (5e-2, 5e-2)
    assert 1e-4 < figures["denoise/prediction"].value < 5e-2
    opened = open_bundle(bundle)
    references = tensors_from_bytes(opened.view(parity.references), parity.references)
    wide, torch = (references[f"trajectory/{name}"] for name in ("image_of_fp32", "image"))
    assert np.abs(wide - torch).max() < 1e-4  # the fp32 graphs' own picture, not int8's


def test_verify_repeats_the_figures_and_engines_are_built(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latentc(["build", str(bundle)]) == 0
    capsys.readouterr()
    assert latentc(["verify", str(bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    against = {figure["tensor"]: figure["against"] for figure in report["figures"]}
    assert against["trajectory/image_of_fp32"] == "the fp32 graphs' picture and the loop, built engine"
    assert latentc(["verify", str(bundle), "--memory", "low"]) == 0


def test_inspect_shows_the_bytes_and_the_dump_every_layer(
    bundle: Path, dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latentc(["inspect", str(bundle)]) == 0
    int8_bytes = open_bundle(bundle).manifest.graphs["denoise"].int8_bytes
    assert f"{int8_bytes / 1e3:.3g} kB int8" in capsys.readouterr().out
    first = (dump / "4-final/denoise.int8.tsv").read_text().splitlines()[0]
    num_int8 = NUM_MATRICES - len(kept_layers(dump))
    assert first.startswith(f"# {num_int8} of {NUM_MATRICES} layers in int8; prediction off by 0.0")


def test_steps_in_int8_can_be_cached_too(tmp_path: Path) -> None:
    source = write_random_dit(tmp_path / "dit-of-four", width=WIDTH, layers=4)
    export_bundle(small(source, tmp_path / "b", cache=True))
    opened = open_bundle(tmp_path / "b")
    assert opened.manifest.graphs["denoise_cached"].weights == "graphs/denoise.weights"
    assert 0 < opened.manifest.graphs["denoise_cached"].int8_bytes < opened.manifest.graphs["denoise"].int8_bytes
    figures = {figure.tensor: figure for figure in opened.parity().figures}
    for tensor in ("denoise/prediction", "denoise_cached/prediction", "denoise/residual_0"):
        assert figures[tensor].bound == 5e-2
        assert 1e-4 < figures[tensor].value < 5e-2
    assert latentc(["verify", str(tmp_path / "b"), "--backend", "onnxruntime"]) == 0


def test_a_target_without_int8_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"--precision int8 for --target tensorrt-11: int8 is written for onnxruntime"
    ):
        export_bundle(small(source, tmp_path / "b", target="tensorrt-11"))
    assert not list(tmp_path.iterdir())


def test_a_bound_that_cannot_hold_fails_the_gate_with_exit_code_3(source: Path, tmp_path: Path) -> None:
    arguments = [str(source), "--output", str(tmp_path / "b"), "--precision", "int8", "--steps", "2"]
    assert main([*arguments, "--min-psnr", "190"]) == ParityError.exit_code == 3
    assert not (tmp_path / "b").exists()


def test_layers_are_kept_and_named_where_the_bound_needs_it(
    source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {figure.tensor: figure for figure in open_bundle(bundle).parity().figures}
    bound = figures["denoise/prediction"].value  # must be 10 % less
    export_bundle(small(source, tmp_path / "b", bounds=Bounds(relative_l2=bound, psnr_db=35)))
    said = capsys.readouterr().err
    assert "stays in fp32: alone it puts the prediction off by" in said
    kept = open_bundle(tmp_path / "b").manifest.graphs["denoise"]
    assert 0 < kept.int8_bytes < open_bundle(bundle).manifest.graphs["denoise"].int8_bytes


def test_beyond_the_memory_layers_are_judged_by_their_own_output(source: Path, bundle: Path, tmp_path: Path) -> None:
    export_bundle(small(source, tmp_path / "b", memory_bytes=1))
    parity = open_bundle(tmp_path / "b").parity()
    assert {item.tensor for item in parity.unverified} == {"trajectory", "denoise/phases", "decode/phases"}
    assert {figure.tensor.partition("/")[0] for figure in parity.figures} == {"schedule", "denoise", "decode"} | (
        {"prompt"} & set(open_bundle(bundle).manifest.graphs)
    )
    wide = next(figure for figure in parity.phases if figure.tensor == "denoise/prediction")
    assert wide.bound == 1e-5
    assert open_bundle(tmp_path / "b").manifest.graphs["denoise"].int8_bytes


def test_a_model_without_matrices_worth_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = write_random_dit(tmp_path / "dit")
    assert main([str(narrow), "--output", str(tmp_path / "b"), "--precision", "int8", "--steps", "2"]) == 1
    assert "holds no matrix product with a weight that is worth quantising" in capsys.readouterr().err
