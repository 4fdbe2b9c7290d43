"""The account of a partition, and what a dump holds."""

import json
from pathlib import Path

import onnx

from export.cost import cost_of_graph
from export.hoist import write_dump
from tests.export.hoist.graphs import DIMS, LOOP, PROMPT, SCHEDULE, adaln, cut, parsed


def test_the_figures_are_those_of_the_graphs() -> None:
    parts = cut(adaln(), x=LOOP, t=SCHEDULE, p=PROMPT)
    report = parts.report
    whole, denoise = cost_of_graph(parts.whole, DIMS), cost_of_graph(parts.denoise, DIMS)
    assert (report.whole.parameters, report.whole.flops) == (whole.parameters, whole.flops)
    assert (report.parts["denoise"].parameters, report.parts["denoise"].flops) == (denoise.parameters, denoise.flops)
    assert parts.schedule is not None
    every = cost_of_graph(parts.schedule, {"batch": 2 * report.steps})
    assert report.parts["schedule"].flops == every.flops
    assert sum(figures.parameters for figures in report.classes.values()) == whole.parameters
    assert report.row_bytes == 2 * 4 * 4
    assert report.table_bytes == 28 * report.row_bytes
    inputs = 4 * (2 * 4 + 2 + 2 * 4)
    assert report.bytes_read_per_step_before == whole.weight_bytes + inputs
    assert report.bytes_read_per_step_after == denoise.weight_bytes + 4 * 2 * 4 + report.row_bytes


def test_a_dump_has_the_table_the_numbers_every_node_and_every_graph(tmp_path: Path) -> None:
    parts = cut(adaln(), x=LOOP, t=SCHEDULE, p=PROMPT)
    write_dump(tmp_path / "dump", parts)
    names = {path.name for path in (tmp_path / "dump").iterdir()}
    graphs = {"0-whole.onnx", "1-prompt.onnx", "2-schedule.onnx", "3-denoise.onnx"}
    assert names == {"partition.txt", "partition.json", "nodes.tsv"} | graphs
    table = (tmp_path / "dump" / "partition.txt").read_text()
    assert "parameters in the loop" in table
    data = json.loads((tmp_path / "dump" / "partition.json").read_text())
    assert data["parts"]["denoise"]["parameters"] == parts.report.parts["denoise"].parameters
    nodes = (tmp_path / "dump" / "nodes.tsv").read_text().splitlines()
    assert len(nodes) == 1 + len(parts.whole.graph)
    assert any(line.split("\t")[3:5] == ["loop", "denoise"] for line in nodes)
    for name in graphs:
        onnx.load(tmp_path / "dump" / name, load_external_data=False)


def test_large_weights_are_not_written(tmp_path: Path) -> None:
    model = parsed("(float[batch, 64] x) => (float[batch, 64] y) { y = MatMul(x, w) }", w=(64, 64))
    write_dump(tmp_path, cut(model, x=LOOP))
    assert (tmp_path / "0-whole.onnx").stat().st_size < 2048
