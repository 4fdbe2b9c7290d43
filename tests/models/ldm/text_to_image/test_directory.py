"""The directory loads as any FluxPipeline, and the shipped one draws what it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from models.ldm.autoencoder import autoencoder_from_config
from models.ldm.text_to_image.config import AUTOENCODER, CHECKPOINT
from models.ldm.text_to_image.directory import drawn, pipeline_of, write_directory
from models.ldm.text_to_image.judge import colours_of
from models.ldm.text_to_image.networks import flux_autoencoder
from tests.models.ldm import tiny as tiny_pictures
from tests.models.ldm.text_to_image import tiny

needs_model = pytest.mark.skipif(
    not (CHECKPOINT / "model_index.json").is_file(), reason="no shipped model in this checkout"
)


def small_pipeline() -> FluxPipeline:
    torch.manual_seed(0)
    vae = flux_autoencoder(autoencoder_from_config(tiny_pictures.AUTOENCODER, 16))
    return pipeline_of(tiny.networks(), vae, tiny.tokenizers())


def test_written_directory_loads_in_float32_and_draws_the_same(tmp_path: Path):
    pipe = small_pipeline()
    wanted = drawn(pipe, ["red heart", "automobile"], 0, 2, sequence_length=32, size=16)
    assert write_directory(pipe, tmp_path / "model") == sum(
        path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file()
    )
    for name in ("tokenizer", "tokenizer_2"):
        kept = json.loads((tmp_path / "model" / name / "tokenizer.json").read_text(encoding="utf-8"))
        assert kept["padding"] is None  # though the pipeline has just padded and cut with it
        assert kept["truncation"] is None
    loaded = FluxPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert {module.dtype for module in (loaded.transformer, loaded.text_encoder, loaded.text_encoder_2)} == {
        torch.float32
    }
    found = drawn(loaded, ["red heart", "automobile"], 0, 2, sequence_length=32, size=16)
    assert (found - wanted).abs().mean() < 0.02  # half precision of the weights
    assert (found[0] - found[1]).abs().mean() > 0.05


def test_autoencoder_is_a_link_beside_emoji_dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.ldm.text_to_image.directory.AUTOENCODER", tmp_path / "emoji-dit" / "vae")
    pipe = small_pipeline()
    (tmp_path / "emoji-dit" / "vae").mkdir(parents=True)
    weights = tmp_path / "emoji-dit" / "vae" / "diffusion_pytorch_model.safetensors"
    pipe.vae.save_pretrained(tmp_path / "emoji-dit" / "vae")
    size = write_directory(pipe, tmp_path / "emoji-flux")
    link = tmp_path / "emoji-flux" / "vae" / weights.name
    assert link.is_symlink()
    assert not [p for p in (tmp_path / "emoji-flux").rglob("*.json") if str(tmp_path) in p.read_text(encoding="utf-8")]
    assert link.readlink() == Path("../../emoji-dit/vae") / weights.name
    assert size < sum(path.stat().st_size for path in (tmp_path / "emoji-flux").rglob("*") if path.is_file())
    FluxPipeline.from_pretrained(tmp_path / "emoji-flux", local_files_only=True)


@needs_model
def test_shipped_models_stay_under_16_mb():
    files = [path for path in CHECKPOINT.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 16e6
    assert (CHECKPOINT / "vae" / "diffusion_pytorch_model.safetensors").resolve().parent == AUTOENCODER


@needs_model
def test_shipped_model_draws_hearts_of_the_colour_that_is_asked_for():
    pipe = FluxPipeline.from_pretrained(CHECKPOINT, local_files_only=True)
    prompts = [f"{colour} heart" for colour in ("red", "green", "blue", "yellow")]
    pictures = drawn(pipe, prompts, 0, 6, sequence_length=32)
    assert colours_of(pictures) == ["red", "green", "blue", "yellow"]
    corners = torch.cat([pictures[:, :, :4, :4].flatten(1), pictures[:, :, -4:, -4:].flatten(1)])
    assert np.isclose(float(corners.mean()), 1.0, atol=0.1)  # on white
