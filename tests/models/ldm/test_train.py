"""The command: one line for bad options, and several processes under `accelerate launch`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.ldm.config import CHECKPOINT
from models.ldm.train import STAGES, plan_from_arguments


def test_plan_defaults_are_the_shipped_run():
    plan = plan_from_arguments([])
    assert plan.stages == STAGES
    assert plan.output == CHECKPOINT
    assert plan_from_arguments(["--stage", "dit"]).stages == ("dit",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--size", "60"], "multiple of 8"), (["--data", "x"], "overwrite the shipped emoji model")],
)
def test_bad_options_are_refused(arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        plan_from_arguments(arguments)


def test_missing_folder_is_one_line_and_exit_1(tmp_path: Path):
    command = [sys.executable, "-m", "models.ldm.train", "--data", str(tmp_path / "absent"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train: --data")
    assert "Traceback" not in done.stderr


def test_two_processes_train_both_stages_and_leave_a_pipeline(tmp_path: Path):
    random = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(20):
            noise = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / name / f"{index}.png")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [
        *launch,
        "-m",
        "models.ldm.train",
        "--data",
        tmp_path / "data",
        "--size",
        16,
        "--work",
        tmp_path / "work",
    ]
    command += ["--output", tmp_path / "model", "--vae-steps", 3, "--gan-start", 1, "--vae-batch", 2]
    command += ["--decoder-steps", 2, "--dit-steps", 2, "--dit-batch", 2]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [
        json.loads(line) for line in (tmp_path / "work" / "transformer" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [2]  # one process writes, not both
    index = json.loads((tmp_path / "model" / "model_index.json").read_text(encoding="utf-8"))
    assert index["id2label"] == {"0": "left", "1": "right"}
