"""The short form: the harness gives figures that can be right. No test here asserts a time."""

import json
import math
from pathlib import Path

import pytest
from onnx_ir import Model

from benchmarks import hoisting
from benchmarks.hoisting_dit import dit
from benchmarks.hoisting_half import half_errors
from benchmarks.hoisting_structure import structure_of
from benchmarks.hoisting_time import step_times
from benchmarks.hoisting_trace import graph_from_denoiser

TINY = dit("tiny DiT", heads=2, head_dim=16, layers=1, size=8)


@pytest.fixture(scope="module")
def graph() -> Model:
    return graph_from_denoiser(TINY, weights=True)


def test_without_weights_the_graph_is_counted_as_with_them(graph: Model) -> None:
    found = structure_of(TINY)
    assert found.parameters_after < found.parameters_before
    assert found.bytes_read_per_step_after < found.bytes_read_per_step_before
    assert found.table_bytes == 28 * found.row_bytes > 0
    assert not found.declined
    with_weights = sum(v.const_value.size for v in graph.graph.initializers.values() if v.dtype.is_floating_point())
    # Small tensors that are equal are one in the real graph, and made-up ones never are.
    assert found.parameters_before == pytest.approx(with_weights, rel=0.01)


def test_half_errors_are_those_of_half_precision(graph: Model) -> None:
    found = half_errors(TINY, graph, "float32")
    assert found.parity <= 1e-6
    for error in (found.everything_whole, found.everything_hoisted, found.islands_whole, found.islands_hoisted):
        assert 1e-5 < error < 0.1  # float32 would be below, a broken graph above


def test_both_graphs_are_timed(graph: Model) -> None:
    found = step_times(TINY, graph, rounds=4)
    assert found.rounds == 4
    assert all(math.isfinite(ms) and ms >= 0 for ms in (found.whole_ms, found.hoisted_ms))


def test_a_section_is_written_beside_the_others_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "hoisting.json"
    results.write_text(json.dumps({"half": {"figures": []}}))
    monkeypatch.setitem(hoisting.SECTIONS, "structure", lambda match: iter(()))
    hoisting.main(["structure", "--match", "none", "--results", str(results)])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["structure"]["command"] == "python -m benchmarks.hoisting structure --match 'none'"
    assert printed["structure"]["machine"]["versions"]["onnxruntime"]
    assert json.loads(results.read_text()).keys() == {"half", "structure"}


def test_an_unknown_section_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hoisting.main(["speed"])
    assert "no section is called speed; there are structure" in capsys.readouterr().err
