"""The adapter of LDMTextToImagePipeline: what it reads and refuses, its picture, and where the pipeline is mended."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, LDMTextToImagePipeline

from models.components import load_pipeline, load_scheduler
from models.latent_diffusion import Lora, ReferenceRequest, SizeRange, SourceError, TextRule
from models.latent_text_to_image.family import LatentTextToImage
from models.latent_text_to_image.modules import CODEBOOK_IN_FLOAT32
from models.latent_text_to_image.reference import load_autoencoder
from tests.models.drawing import draw, psnr
from tests.pipelines.latent_text_to_image import make_latent_text_to_image
from tests.pipelines.stable_diffusion import BETAS
from tests.pipelines.vae import random_vae

REQUEST = ReferenceRequest(seed=3, steps=4, cfg_scale=5.0, prompts=("a red cat", ""), height=48, width=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latent_text_to_image(tmp_path_factory.mktemp("ldm") / "kl")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latent_text_to_image(tmp_path_factory.mktemp("ldm") / "vq", quantised=True)


def reference(source: Path, request: ReferenceRequest, scheduler=None) -> torch.Tensor:
    return LatentTextToImage().reference_image(source, scheduler or load_scheduler(source), request)


def test_reads_a_directory(source: Path, quantised: Path):
    model = LatentTextToImage().load(source)
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((4, 8, 8), (3, 64, 64), 4)
    assert (model.default_steps, model.default_cfg_scale, model.encoder) == (50, 1.0, None)
    assert model.sizes == SizeRange(multiple=2, minimum=4, maximum=16)
    assert (model.conditioning, model.overflows) == (("bert_hidden",), ())
    (encoder,) = model.text_encoders
    assert encoder.prompt == encoder.negative == TextRule(length=77)
    assert LatentTextToImage().load(quantised).overflows == (CODEBOOK_IN_FLOAT32,)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompts": ("blurry", "Text"), "height": 64, "width": 64},
        {"prompts": ("a very long prompt " * 40, "Straße 日本 🍳")},
        {"cfg_scale": 1.0},
        {"cfg_scale": 0.5, "negative_prompts": ("blurry", "text")},
    ],
    ids=["default", "negative prompts, square", "over-long and unicode", "no guidance", "less than none"],
)
@pytest.mark.parametrize("kind", ["source", "quantised"])
def test_the_picture_is_the_pipelines(request, kind: str, changes: dict):
    directory, asked = request.getfixturevalue(kind), replace(REQUEST, **changes)
    assert psnr(draw(LatentTextToImage().load(directory), asked), reference(directory, asked)) > 90


@pytest.mark.parametrize("scheduler", [None, DPMSolverMultistepScheduler(**BETAS)], ids=["its own", "dpm++"])
def test_the_reference_is_the_bare_pipeline_where_nothing_needs_mending(source: Path, scheduler):
    pipeline = load_pipeline(LDMTextToImagePipeline, source, scheduler or load_scheduler(source))
    bare = pipeline(
        list(REQUEST.prompts), height=48, width=32, num_inference_steps=4, guidance_scale=5.0, output_type="pt",
        generator=torch.Generator("cpu").manual_seed(REQUEST.seed),
    ).images  # fmt: skip
    assert torch.equal(reference(source, REQUEST, scheduler), bare)


def test_a_solver_that_scales_its_input_and_draws_noise_is_mended(source: Path):
    scheduler = EulerAncestralDiscreteScheduler(**BETAS)
    model = replace(LatentTextToImage().load(source), scheduler=scheduler)
    assert psnr(draw(model, REQUEST), reference(source, REQUEST, scheduler)) > 90


def test_the_picture_follows_prompt_guidance_and_seed(source: Path, quantised: Path):
    prompts = ("two dogs running along the beach", "oil on canvas")
    for directory in (source, quantised):
        model = LatentTextToImage().load(directory)
        picture = draw(model, REQUEST)
        for changes in ({"prompts": prompts}, {"negative_prompts": prompts}, {"cfg_scale": 2.0}, {"seed": 4}):
            assert psnr(draw(model, replace(REQUEST, **changes)), picture) < 30, changes


def test_sharded_weights_in_bfloat16_are_read(tmp_path: Path):
    source = make_latent_text_to_image(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="60KB")
    assert (source / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    model = LatentTextToImage().load(source)
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert psnr(draw(model, REQUEST), reference(source, REQUEST)) > 90


def test_what_does_not_fit_is_refused(source: Path, tmp_path: Path):
    with pytest.raises(SourceError, match="has no adapters; export without --lora"):
        LatentTextToImage().load(source, [Lora(tmp_path / "style.safetensors", 1.0)])
    other = make_latent_text_to_image(tmp_path / "other")
    random_vae(levels=3).save_pretrained(other / "vqvae")
    with pytest.raises(SourceError, match="its vqvae has 4 pixels per latent, and LDMTextToImagePipeline divides by 8"):
        LatentTextToImage().load(other)
    path = other / "vqvae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "AutoencoderDC"}))
    with pytest.raises(SourceError, match="its _class_name is 'AutoencoderDC'; LDMTextToImagePipeline has Autoencod"):
        load_autoencoder(other)
