"""What training leaves: a plain DiTPipeline directory. The shipped one loads with nothing but diffusers, and draws."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from models.ldm.autoencoder import autoencoder_from_config
from models.ldm.config import CHECKPOINT
from models.ldm.directory import drawn, pipeline_of, write_directory
from models.ldm.transformer import transformer_from_config
from tests.models.ldm import tiny

CLASSES = ("dots", "more, dots")


def test_directory_round_trip_keeps_weights_labels_and_scale(tmp_path: Path):
    vae = autoencoder_from_config(tiny.AUTOENCODER, 16)
    vae.register_to_config(scaling_factor=0.25)
    transformer = transformer_from_config(tiny.TRANSFORMER, 4, 8)
    size = write_directory(pipeline_of(transformer, vae, tiny.TRANSFORMER, CLASSES), CLASSES, tmp_path / "model")
    assert size == sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    loaded = DiTPipeline.from_pretrained(str(tmp_path / "model"), torch_dtype=torch.float16)
    assert loaded.labels == {"dots": 0, "more  dots": 1}  # a comma would make two labels of it
    assert loaded.get_label_ids(["more  dots"]) == [1]
    assert loaded.vae.config.scaling_factor == 0.25
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    for other in (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler):
        swapped = other.from_config(loaded.scheduler.config)
        assert swapped.config.prediction_type == "v_prediction"
        assert not swapped.config.get("clip_sample", False)
    for name, value in transformer.state_dict().items():
        assert torch.equal(value, loaded.transformer.state_dict()[name]), name


def test_drawing_depends_on_the_seed_of_each_picture_only():
    torch.manual_seed(0)
    vae = autoencoder_from_config(tiny.AUTOENCODER, 16).eval()
    transformer = transformer_from_config(tiny.TRANSFORMER, 4, 8).eval()
    torch.nn.init.normal_(transformer.proj_out_2.weight)
    pipe = pipeline_of(transformer, vae, tiny.TRANSFORMER, CLASSES)
    three = drawn(pipe, [0, 1, 0], seed=5, num_steps=2)
    assert three.shape == (3, 3, 16, 16)
    assert three.abs().max() <= 1.0
    assert torch.allclose(drawn(pipe, [1], seed=6, num_steps=2)[0], three[1], atol=1e-5)
    assert not torch.allclose(three[0], three[2])


@pytest.mark.skipif(not (CHECKPOINT / "model_index.json").is_file(), reason="no shipped model in this checkout")
class TestShippedModel:
    def test_it_is_small_and_says_what_it_is(self):
        assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) <= 12_000_000
        card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
        for word in ("Noto Color Emoji", "OFL", "Apache-2.0", "PSNR", "held-out"):
            assert word in card

    def test_plain_diffusers_loads_it_and_draws(self):
        pipe = DiTPipeline.from_pretrained(str(CHECKPOINT))
        pipe.set_progress_bar_config(disable=True)
        assert len(pipe.labels) == 99
        ids = pipe.get_label_ids(["food-fruit", "country-flag"])
        images = pipe(ids, generator=torch.Generator().manual_seed(7), num_inference_steps=20, output_type="np").images
        assert images.shape == (2, 64, 64, 3)
        # Pictures of the training set: on white, with something on it, and two classes look different.
        assert images[:, :3, :3].mean() > 0.9
        assert images.std() > 0.1
        assert abs(images[0] - images[1]).mean() > 0.05
