"""SDXL's adapter: what it reads and refuses, and its picture against the pipelines themselves."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.autoencoder import SDXL_VAE_OVERFLOW
from models.components import load_scheduler
from models.latent_diffusion import ReferenceRequest, SizeRange, SourceError, TextRule
from models.sdxl.family import SDXL
from tests.models.drawing import draw, psnr
from tests.pipelines.sdxl import make_sdxl, random_sdxl_unet, turbo_scheduler
from tests.pipelines.vae import random_vae

REQUEST = ReferenceRequest(seed=3, steps=4, cfg_scale=5.0, prompts=("a red cat", ""), height=48, width=32)
GUIDED = replace(REQUEST, cfg_scale=1.0, guidance=8.0)
KINDS = {
    "base": {},
    "turbo": {"scheduler": turbo_scheduler()},
    "lcm": {"distilled": True},
    "empty prompts are encoded": {"force_zeros": False},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_sdxl(tmp_path_factory.mktemp("sdxl") / kind.split()[0], **KINDS[kind])
        return made[kind]

    return find


def reference(source: Path, request: ReferenceRequest) -> torch.Tensor:
    return SDXL().reference_image(source, load_scheduler(source), request)


def test_reads_a_directory(source):
    model = SDXL().load(source("base"))
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((4, 8, 8), (3, 32, 32), 4)
    assert (model.default_steps, model.default_cfg_scale, model.default_guidance) == (50, 5.0, None)
    assert (model.default_strength, model.zero_null, model.overflows) == (0.3, True, (SDXL_VAE_OVERFLOW,))
    assert model.sizes == SizeRange(multiple=2, minimum=4, maximum=16)
    assert [encoder.name for encoder in model.text_encoders] == ["text_encoder", "text_encoder_2"]
    assert {encoder.prompt for encoder in model.text_encoders} == {TextRule(length=77)}
    assert not SDXL().load(source("empty prompts are encoded")).zero_null


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("base", {}),
        ("base", {"negative_prompts": ("blurry, deformed hands", "Text"), "height": 32}),
        ("base", {"prompts": ("a very long prompt " * 40, "Straße 日本 🍳"), "width": 64}),
        ("empty prompts are encoded", {}),
        ("turbo", {"cfg_scale": 1.0, "steps": 1}),
        ("turbo", {"cfg_scale": 1.0, "steps": 3}),
        ("lcm", {"cfg_scale": 1.0, "guidance": 8.0}),
    ],
)
def test_the_picture_is_the_pipelines(source, kind: str, changes: dict):
    asked = replace(REQUEST, **changes)
    assert psnr(draw(SDXL().load(source(kind)), asked), reference(source(kind), asked)) > 90


def test_over_an_image_the_picture_is_the_img2img_pipelines(source):
    image = np.random.default_rng(0).random((48, 32, 3), dtype=np.float32)
    asked = replace(REQUEST, init_image=image, strength=0.6)
    picture = draw(SDXL().load(source("base")), asked)
    assert psnr(picture, reference(source("base"), asked)) > 90


def test_the_picture_follows_prompt_guidance_and_seed(source):
    prompts = ("two dogs running along the beach", "oil on canvas")
    for kind, asked, scale, other in (("base", REQUEST, "cfg_scale", 2.0), ("lcm", GUIDED, "guidance", 20.0)):
        model = SDXL().load(source(kind))
        picture = draw(model, asked)
        changes = {"prompts": prompts, "seed": 4, scale: other}
        if kind == "base":
            changes["negative_prompts"] = prompts
        for name, value in changes.items():
            assert psnr(draw(model, replace(asked, **{name: value})), picture) < 30, (kind, name)


def test_sharded_weights_in_bfloat16_are_read(tmp_path: Path):
    source = make_sdxl(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="60KB")
    assert (source / "text_encoder_2" / "model.safetensors.index.json").is_file()
    model = SDXL().load(source)
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert psnr(draw(model, REQUEST), reference(source, REQUEST)) > 90


def test_a_vae_that_does_not_overflow_has_no_island(tmp_path: Path):
    source = make_sdxl(tmp_path / "fixed")
    random_vae(scaling_factor=0.13025, force_upcast=False).save_pretrained(source / "vae")
    assert SDXL().load(source).overflows == ()


def test_what_is_no_base_model_is_refused(tmp_path: Path):
    source = make_sdxl(tmp_path / "other")
    random_sdxl_unet(cross_attention_dim=24).save_pretrained(source / "unet")
    with pytest.raises(SourceError, match=r"give 32 \+ 48 channels, and unet takes cross_attention_dim=24"):
        SDXL().load(source)
    random_sdxl_unet(projection_class_embeddings_input_dim=40 + 5 * 8).save_pretrained(source / "unet")
    with pytest.raises(SourceError, match="text_encoder_2 pools to 40 channels, and unet takes 32 beside six"):
        SDXL().load(source)
    shutil.rmtree(source / "text_encoder")
    index = json.loads((source / "model_index.json").read_text()) | {"text_encoder": [None, None]}
    (source / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="no text_encoder; a refiner is not supported"):
        SDXL().load(source)
