"""--memory: what is compared of a larger model, what the report says of the rest, and that the graphs are the same."""

import shutil
from pathlib import Path

import pytest
from latentc.bundle import open_bundle
from latentc.cli import main as latentc
from latentc.errors import ParityError

from export.pipeline import ExportOptions, export_bundle
from export.reach import Reach
from export.verify import Bounds
from tests.pipelines.sd3 import make_sd3

GIB = 1 << 30


def test_a_graph_is_beyond_by_its_own_weights_and_the_trajectory_by_all() -> None:
    reach = Reach(4 * GIB, {"text_encoder": 2 * GIB, "denoise": 3 * GIB, "decode": GIB})
    assert not any(map(reach.is_beyond, reach.weight_bytes))
    assert not reach.runs_trajectory
    assert [item.tensor for item in reach.unverified()] == ["trajectory"]
    assert "6.44 GB in float32, and --memory is 4.29 GB" in reach.unverified()[0].reason
    larger = Reach(6 * GIB, reach.weight_bytes)
    assert larger.runs_trajectory
    assert larger.unverified() == ()
    smaller = Reach(5 * GIB // 2, reach.weight_bytes)
    assert [item.tensor for item in smaller.unverified()] == ["denoise/phases", "trajectory"]


def small(output: Path, source: Path, **options: object) -> ExportOptions:
    return ExportOptions(source=str(source), output=output, steps=(2,), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("reach") / "sd3")


@pytest.fixture(scope="module")
def beyond(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a pipeline of which nothing is within the memory."""
    output = tmp_path_factory.mktemp("reach") / "beyond"
    export_bundle(small(output, source, memory_bytes=1))
    return output


def test_a_model_beyond_reach_is_written_as_one_within(source: Path, beyond: Path, tmp_path: Path) -> None:
    """Text encoders, true guidance and hoisting: all of it beyond the memory."""
    export_bundle(small(tmp_path / "within", source))
    both = [open_bundle(path).manifest.files for path in (tmp_path / "within", beyond)]
    graphs = [file for file in both[0] if file.startswith(("graphs/", "tables/", "tokenizers/"))]
    assert len(graphs) > 10
    for file in graphs:
        assert both[0][file] == both[1][file]
    full, parity = (open_bundle(path).parity() for path in (tmp_path / "within", beyond))
    assert full.unverified == ()
    assert {item.tensor for item in parity.unverified} == {"trajectory"} | {
        f"{name}/phases" for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "denoise", "decode")
    }
    assert {figure.tensor for figure in full.figures} - {figure.tensor for figure in parity.figures} == {
        "trajectory/image"
    }
    assert parity.phases == ()


def test_half_precision_beyond_reach_is_held_to_torch_twice(source: Path, tmp_path: Path) -> None:
    """Phases were not compared, so the float32 graph behind the half one is held to torch, too."""
    export_bundle(small(tmp_path / "b", source, memory_bytes=1, precision="fp16"))
    parity = open_bundle(tmp_path / "b").parity()
    wide = {figure.tensor: figure for figure in parity.phases}
    half = {figure.tensor: figure for figure in parity.figures}
    assert "denoise/prediction" in wide
    assert set(wide) == {tensor for tensor in half if not tensor.startswith(("prompt/", "schedule/"))}
    for tensor, figure in wide.items():
        assert figure.bound == 1e-5
        assert figure.value < half[tensor].value
    assert half["denoise/prediction"].value > 1e-5


def test_verify_compares_what_the_export_compared(beyond: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latentc(["verify", str(beyond)]) == 0
    out = capsys.readouterr().out
    assert "denoise/prediction" in out
    assert "trajectory/image" not in out


def test_the_gate_holds_beyond_reach(random_dit: Path, tmp_path: Path) -> None:
    impossible = Bounds(relative_l2=1e-12)
    with pytest.raises(ParityError, match="denoise/prediction: relative_l2 is"):
        export_bundle(small(tmp_path / "b", random_dit, memory_bytes=1, bounds=impossible))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_verification_is_not_repeated(
    random_dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written and compared is kept; the second run computes neither weights nor figures again."""

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    options = small(tmp_path / "b", random_dit, memory_bytes=1, precision="fp16")
    with monkeypatch.context() as patch:
        patch.setattr("export.pipeline.seal", full_disk)
        with pytest.raises(OSError, match="no space left"):
            export_bundle(options)
    assert not (tmp_path / "b").exists()
    with monkeypatch.context() as patch:
        for name in ("export.pipeline.verify_graphs", "export.compile.measured", "export.pipeline.hoisted_values"):
            patch.setattr(name, lambda *_: pytest.fail("computed twice"))
        continued = export_bundle(options)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    noted = capsys.readouterr().err
    assert "continue with the same command" in noted
    assert "export: continues what was interrupted" in noted
    assert "export: note: trajectory was not compared: all weights take" in noted
    shutil.rmtree(tmp_path / "b")
    assert export_bundle(options).files == continued.files
