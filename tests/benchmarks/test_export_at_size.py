"""The harness around exports: what it counts, stores, kills and writes. No test here asserts a time."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import export_page
from benchmarks.export_at_size import store, table, worst
from benchmarks.export_peers import row_of
from benchmarks.kill_export import hashes, moments, state_of
from benchmarks.process_tree import Memory, Run
from tests.runtime.toy import write_bundle

PEAK = {"rss": 2_100_000_000, "anon": 900_000_000, "file": 1_200_000_000, "hwm": 2_000_000_000}
MACHINE = {
    "cores": 2, "processor": "AMD EPYC", "memory_gib": 24,
    "versions": {"torch": "1", "diffusers": "2", "onnxruntime": "3"},
}  # fmt: skip
ROW: dict[str, Any] = {
    "model": "flux-dev",
    "command": "python -m export SOURCE --output BUNDLE --precision fp16",
    "bounds": {"peak_gb": 2.5, "minutes": 15, "copy_share": 0.6},
    "disk_bytes_per_s": {"write": 1e9, "read": 2e9, "copy": 0.8e9},
    "source": {"parameters": 12_000_000_000, "bytes": 24_000_000_000},
    "seconds": 600.0,
    "peak_bytes": PEAK,
    "phases": {"hash": {"seconds": 20.0, "rss": 10**9}, "weights": {"seconds": 40.0, "rss": 2 * 10**9}},
    "bundle_bytes": 23_000_000_000,
    "weights_copy_share": 0.7,
    "step_parameters": 11_900_000_000,
    "loop_parameters": 8_650_000_000,
    "parity": [
        {"tensor": "denoise/prediction", "measure": "relative_l2", "value": 2e-3, "bound": 1e-2},
        {"tensor": "decode/image", "measure": "relative_l2", "value": 3e-3, "bound": 1e-2},
    ],
    "unverified": [{"tensor": "trajectory", "reason": "all weights take 50 GB"}],
    "machine": MACHINE,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "toy")


def test_the_table_says_what_was_reached_and_what_must_be() -> None:
    line = table({"flux-dev": ROW}).splitlines()[-1]
    assert "2.00 GB (1.20); bound 2.5" in line
    assert "10.0 min; bound 15" in line
    assert "70 % of 0.80 GB/s" in line
    assert "11.90 → 8.65 B (−27.3 %)" in line
    assert "3.0e-03 of 0.01 (`decode/image`)" in line


def test_the_worst_figure_is_the_one_nearest_to_its_bound() -> None:
    picture = {"tensor": "trajectory/image", "measure": "psnr_db", "value": 41.0, "bound": 35.0}
    assert worst([*ROW["parity"], picture]) == "3.0e-03 of 0.01 (`decode/image`), 41.0 dB of 35"


def test_a_row_is_stored_beside_the_others(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    store(results, "a", {"seconds": 1})
    store(results, "b", {"seconds": 2})
    assert store(results, "a", {"seconds": 3}) == {"a": {"seconds": 3}, "b": {"seconds": 2}}
    assert json.loads(results.read_text())["rows"]["a"] == {"seconds": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_bundle_is_whole_or_nothing_or_what_is_wrong_is_said(bundle: Path) -> None:
    assert state_of(bundle.with_name("none")) == "nothing"
    assert state_of(bundle) == "whole"
    weights = bundle / "graphs" / "denoise.weights"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert state_of(bundle).startswith("partial: BUNDLE: graphs/denoise.weights is damaged")


def test_a_flipped_bit_is_another_hash_and_every_file_has_one(bundle: Path) -> None:
    before = hashes(bundle)
    assert len(before) == sum(path.is_file() for path in bundle.rglob("*"))
    file = bundle / "manifest.json"
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    assert {name for name, digest in hashes(bundle).items() if digest != before[name]} == {"manifest.json"}


def test_moments_are_as_many_as_asked_within_the_duration_and_the_same_again() -> None:
    rounds = moments(20, 50.0, 0)
    assert sum(map(len, rounds)) == 20
    assert {len(found) for found in rounds} == {1, 2}
    assert all(0 <= moment <= 50 for found in rounds for moment in found)
    assert max(map(max, rounds)) > 35
    assert min(map(min, rounds)) < 15
    assert rounds == moments(20, 50.0, 0) != moments(20, 50.0, 1)


@pytest.mark.parametrize(
    ("run", "status", "message"),
    [
        (Run(0, 3.0, Memory(rss=5), {}, 0), "ok", ""),
        (Run(-9, 3.0, Memory(rss=5), {}, 0, "held 18.1 GB"), "out of memory", "held 18.1 GB"),
        (Run(1, 3.0, Memory(), {}, 0, None, ["KeyError: 'DiT' in {}/x", "bye"]), "failed", "KeyError: 'DiT' in ./x"),
    ],
)
def test_a_peer_is_ok_or_killed_or_says_why(run: Run, status: str, message: str, tmp_path: Path) -> None:
    run.said = [line.format(tmp_path) for line in run.said]
    row = row_of("optimum-onnx", "dit-s-2", {"parameters": 7, "bytes": 28}, run, tmp_path / "output")
    assert (row["status"], row["message"], row["output_bytes"]) == (status, message, 0)


def test_the_page_has_a_place_for_every_result() -> None:
    page = export_page.PAGE.read_text(encoding="utf-8")
    assert export_page.filled(page, export_page.RESULTS) == page  # run python -m benchmarks.export_page


def test_the_page_is_filled_and_filled_again(tmp_path: Path) -> None:
    (tmp_path / "export_at_size.json").write_text(json.dumps({"rows": {"flux-dev": ROW}}))
    part = {"seconds": 60.0, "peak_bytes": PEAK, "phases": {"step": {"seconds": 50.0, "rss": 1}}}
    step = {
        "runtime": part, "torch": part, "pipeline": "FluxPipeline", "precision": "fp16", "loop_parameters": 8.65e9,
        "size": "256x256", "relative_l2": 2e-3, "bound": 1e-2, "machine": MACHINE,
    }  # fmt: skip
    (tmp_path / "one_step_at_size.json").write_text(json.dumps(step))
    kill = {
        "kills": [{}] * 20, "killed_while_running": 19, "rounds": 13, "undisturbed_s": 60.0, "partial_bundles": 0,
        "rounds_with_other_hashes": [], "left_beside": [], "machine": MACHINE,
    }  # fmt: skip
    (tmp_path / "kill_export.json").write_text(json.dumps(kill))
    made = {"parameters": 10**9, "bytes": 10**9}
    rows = [
        row_of("latentc", "flux-1", made, Run(0, 60.0, Memory(2 * 10**9, 1, 1, 2 * 10**9), {}, 0), tmp_path / "x"),
        row_of("optimum-onnx", "flux-1", made, Run(-9, 60.0, Memory(8 * 10**9), {}, 0, "held 8 GB"), tmp_path / "x"),
    ]
    peers = {"rows": rows, "peer_versions": {"optimum-onnx": "0.1.0"}, "machine": MACHINE}
    (tmp_path / "export_peers.json").write_text(json.dumps(peers))
    page = export_page.PAGE.read_text(encoding="utf-8")
    filled = export_page.filled(page, tmp_path)
    assert "Not measured yet" not in filled
    assert "relative L2 distance 2.00e-03, bound 0.01" in filled
    assert "20 kills, 19 of them before the export was done" in filled
    assert "| flux-1 | 1.00 B | optimum-onnx | out of memory | 8.00 GB | 8.0 | ended after 1.0 min |" in filled
    assert export_page.filled(filled, tmp_path) == filled
    with pytest.raises(ValueError, match="0 places"):
        export_page.filled("", tmp_path)
