"""`make bench` in short: two tools draw, their pictures are compared, the page is filled. No time is judged."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cpu import page
from benchmarks.cpu.aims import aims_of
from benchmarks.cpu.cases import Model
from benchmarks.cpu.environments import ROOT
from benchmarks.cpu.prepare import CHECKOUT, job_of, worker_environment
from benchmarks.cpu.process import Worker
from benchmarks.cpu.rounds import interleaved, ratio

TINY = Model("tiny", "dit", None, 16, 4, 3.0, label=1)
ROUNDS = 2


@pytest.fixture(scope="module")
def found(
    random_dit: Path, random_dit_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What three workers answer: latentc, the same with another solver, and diffusers."""
    pictures = tmp_path_factory.mktemp("pictures")
    flags = {"latentc": ("--solver", "ddim"), "latentc-ddpm": ("--solver", "ddpm"), "diffusers": ()}
    env = worker_environment(1) | CHECKOUT
    workers: dict[str, Worker] = {}
    try:
        for tool, given in flags.items():
            job = job_of(TINY, 1, random_dit, random_dit_bundle, random_dit_bundle, given)
            command = [sys.executable, "-m", "benchmarks.cpu.worker", tool, json.dumps(job)]
            workers[tool] = Worker(command, env, ROOT, pictures / f"{tool}.log")
        return interleaved(workers, 2, ROUNDS, pictures) | {"ready": {t: w.ready for t, w in workers.items()}}
    finally:
        for worker in workers.values():
            worker.close()


def test_the_same_seed_is_the_same_picture_in_both_tools(found: dict[str, dict[str, Any]]) -> None:
    assert "error" not in found["ready"]["latentc"]
    assert found["diffusers"]["psnr_db"] == 200  # "identical": what latentc.parity says of no difference
    assert found["latentc"]["psnr_db"] > 100


def test_a_tool_that_draws_another_picture_is_seen(found: dict[str, dict[str, Any]]) -> None:
    """The toy's pictures are grey all over, so that even another solver's are 59 dB near."""
    assert found["latentc-ddpm"]["psnr_db"] < 80


def test_every_stage_has_its_times(found: dict[str, dict[str, Any]]) -> None:
    for tool in ("latentc", "diffusers"):
        row = found[tool]
        assert len(row["requests_ms"]) == ROUNDS
        assert row["step_ms"]["count"] == ROUNDS * TINY.steps
        parts = row["prologue_ms"]["p50"] + TINY.steps * row["step_ms"]["p50"] + row["decode_ms"]["p50"]
        assert 0 < parts < 3 * row["request_ms"]["p50"]
        assert row["images_per_s"] == pytest.approx(2e3 / row["request_ms"]["p50"], rel=1e-3)


def test_a_tool_that_cannot_draw_is_its_error(random_dit: Path, tmp_path: Path) -> None:
    job = job_of(TINY, 1, random_dit, tmp_path / "none", tmp_path / "none")
    command = [sys.executable, "-m", "benchmarks.cpu.worker", "latentc", json.dumps(job)]
    worker = Worker(command, worker_environment(1) | CHECKOUT, ROOT, tmp_path / "log")
    worker.close()
    assert "none" in worker.ready["error"]


def test_a_ratio_is_of_medians_and_its_interval_holds_it() -> None:
    ours, theirs = [1.0, 1.1, 0.9, 1.0, 5.0], [2.0, 2.2, 1.8, 2.0, 2.1]
    result = ratio(ours, theirs)
    assert result["ratio"] == 2.0
    assert result["low"] <= 2.0 <= result["high"]
    assert ratio(ours, ours) == {"ratio": 1.0, "low": 1.0, "high": 1.0}


def document(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    tools = {name: row for name, row in found.items() if name != "ready"}
    model = {"request": {"pixels": 16, "steps": 4, "cfg_scale": 3.0, "guidance": None}, "ceilings": {}, "tools": {}}
    machine = {"cores": 2, "processor": "tester", "memory_gib": 1, "load_1_5_15_min": [0.0, 0.0, 0.0]}
    return {
        "machine": machine, "threads": 1, "models": {"tiny": model | {"batches": {"1": tools}}}, "cold": {},
        "environments": {"latentc": {"bytes": 1}},
    }  # fmt: skip


def test_whoever_draws_another_picture_is_nobodys_rival(found: dict[str, dict[str, Any]]) -> None:
    results = document(found)
    tools = results["models"]["tiny"]["batches"]["1"]
    tools["openvino"] = tools["diffusers"] | {
        "psnr_db": 20.0,
        "request_ms": tools["diffusers"]["request_ms"] | {"p50": 0.0},
    }
    (aim, _) = aims_of(results)
    assert aim.rival == "diffusers"
    tools["openvino"]["psnr_db"] = 60.0
    assert aims_of(results)[0].rival == "openvino"


def test_the_page_is_what_the_results_say(found: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    results = tmp_path / "bench.json"
    results.write_text(json.dumps(document(found)))
    written = page.filled(page.PAGE.read_text(encoding="utf-8"), results)
    assert f"{np.median(found['latentc']['requests_ms']):.1f}" in written
    assert page.filled(written, results) == written


def test_the_page_of_this_checkout_is_that_of_its_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.RESULTS) == text, f"run {page.WRITER}"
