"""The shipped model, end to end: the checkpoint, its bundle, and the command line against DiTPipeline."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from latentc.cli import main as latentc
from latentc.parity import psnr_db
from PIL import Image
from safetensors import safe_open

from export.pipeline import ExportOptions, export_bundle
from export.solvers import solver_from_name
from models.components import load_scheduler
from models.dit.reference import reference_image
from models.families import FAMILIES
from models.latent_diffusion import ReferenceRequest
from models.shipped import shipped_checkpoints
from tests.conftest import SOLVERS

MAX_BYTES = 12_000_000
MAX_BYTES_OF_ALL = 16_000_000


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return shipped_checkpoints()["emoji-dit"]


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shipped") / "emoji"
    export_bundle(ExportOptions(source=str(checkpoint), output=output, solvers=SOLVERS, steps=(20,)))
    return output


def test_the_checkpoint_is_small_half_precision_and_has_a_card(checkpoint: Path) -> None:
    assert sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()) <= MAX_BYTES
    for path in checkpoint.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    card = (checkpoint / "README.md").read_text()
    for word in ("Licence", "Noto", "steps", "PSNR", "make evaluate"):
        assert word in card


def test_plain_diffusers_loads_it_and_draws(checkpoint: Path) -> None:
    pipeline = DiTPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    labels = pipeline.get_label_ids(["food-fruit", "face-smiling"])
    images = pipeline(labels, generator=torch.Generator().manual_seed(0), num_inference_steps=10).images
    assert [image.size for image in images] == [(64, 64), (64, 64)]
    assert all(np.asarray(image).std() > 20 for image in images)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_command_line_draws_what_diffusers_draws(
    checkpoint: Path, bundle: Path, solver: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same seed, label, steps and guidance: PSNR ≥ 60 dB on the pixels that are written."""
    command = f"sample {bundle} --label food-fruit -s 7 -b 2 --steps 20 --cfg-scale 4 --solver {solver}"
    assert latentc([*command.split(), "-o", str(tmp_path / "out.png"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    drawn = np.asarray(Image.open(tmp_path / "out.png"))  # [64, 128, 3]
    request = ReferenceRequest(labels=tuple(report["labels"]), seed=7, steps=20, cfg_scale=4.0)
    scheduler = solver_from_name(solver, load_scheduler(checkpoint)).fresh()
    images = reference_image(checkpoint, scheduler, request).numpy()
    expected = np.rint(np.concatenate(list(images), axis=2).transpose(1, 2, 0) * 255)
    assert psnr_db(drawn, expected, peak=255.0) >= 60.0


def test_another_label_is_another_picture(bundle: Path, tmp_path: Path) -> None:
    pictures = []
    for label in ("food-fruit", "face-smiling"):
        path = tmp_path / f"{label}.png"
        assert latentc(["sample", str(bundle), "--label", label, "-s", "7", "-o", str(path)]) == 0
        pictures.append(np.asarray(Image.open(path)))
    assert psnr_db(pictures[0], pictures[1], peak=255.0) < 30.0


def test_all_shipped_checkpoints_together_are_small_and_name_no_machine() -> None:
    files = [p for source in shipped_checkpoints().values() for p in source.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files if not p.is_symlink()) <= MAX_BYTES_OF_ALL
    for path in files:
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r'"/\w|_name_or_path|@[A-Z]+@', text), path


def test_emoji_flux_draws_what_its_pipeline_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line against FluxPipeline: two prompts in a batch, the pipeline's own guidance."""
    checkpoint, bundle = shipped_checkpoints()["emoji-flux"], tmp_path / "bundle"
    manifest = export_bundle(ExportOptions(source=str(checkpoint), output=bundle, steps=(8,)))
    assert (manifest.image.width, manifest.image.height, manifest.defaults.guidance) == (64, 64, 3.5)
    assert manifest.graphs["denoise"].parameters < 0.8 * manifest.hoisting.whole_parameters
    prompts = ("red heart", "blue car")
    flags = [flag for prompt in prompts for flag in ("-p", prompt)]
    assert latentc(["sample", str(bundle), *flags, "-s", "7", "-o", str(tmp_path / "out.png"), "--json"]) == 0
    drawn = np.asarray(Image.open(tmp_path / "out.png"))  # [64, 128, 3]
    request = ReferenceRequest(seed=7, steps=8, cfg_scale=1.0, prompts=prompts, guidance=3.5)
    images = FAMILIES["FluxPipeline"].reference_image(checkpoint, load_scheduler(checkpoint), request).numpy()
    expected = np.rint(np.concatenate(list(images), axis=2).transpose(1, 2, 0) * 255)
    assert psnr_db(drawn, expected, peak=255.0) >= 60.0
    assert psnr_db(drawn[:, :64], drawn[:, 64:], peak=255.0) < 30.0
    # A red heart is red in its middle, and white around.
    red, green, blue = drawn[24:40, 24:40].reshape(-1, 3).mean(axis=0)
    assert red > 150
    assert red - max(green, blue) > 80
    assert drawn[:4, :4].mean() > 240
