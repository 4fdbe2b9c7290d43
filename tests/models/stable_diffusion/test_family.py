"""Stable Diffusion's adapter: what it reads and refuses, and its picture against the pipelines themselves."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LatentConsistencyModelPipeline, LCMScheduler

from export.solver_table import NonLinearSolverError, table_from_solver
from export.solvers import solver_from_name
from models.components import load_pipeline, load_scheduler
from models.latent_diffusion import ReferenceRequest, SizeRange, SourceError, TextRule
from models.stable_diffusion.family import LatentConsistency, StableDiffusion
from tests.models.drawing import draw, psnr
from tests.pipelines.stable_diffusion import BETAS, make_stable_diffusion, random_unet
from tests.pipelines.vae import random_vae

REQUEST = ReferenceRequest(seed=3, steps=4, cfg_scale=7.5, prompts=("a red cat", ""), height=48, width=32)
GUIDED = replace(REQUEST, cfg_scale=1.0, guidance=8.5)
KINDS = {"v1": {"version": 1}, "v2": {"version": 2}, "lcm": {"distilled": True}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_stable_diffusion(tmp_path_factory.mktemp("sd") / kind, **KINDS[kind])
        return made[kind]

    return find


def reference(source: Path, request: ReferenceRequest) -> torch.Tensor:
    return StableDiffusion().reference_image(source, load_scheduler(source), request)


def test_reads_a_directory_without_its_safety_checker(source):
    model = StableDiffusion().load(source("v1"))
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((4, 8, 8), (3, 32, 32), 4)
    assert (model.default_steps, model.default_cfg_scale, model.default_guidance) == (50, 7.5, None)
    assert (model.default_strength, model.zero_null) == (0.8, False)
    assert model.sizes == SizeRange(multiple=2, minimum=4, maximum=16)
    assert model.conditioning == ("clip_hidden",)
    (encoder,) = model.text_encoders
    assert encoder.prompt == encoder.negative == TextRule(length=77)


def test_a_distilled_directory_has_guidance_and_no_second_branch(source):
    model = LatentConsistency().load(source("lcm"))
    assert model.conditioning == ("clip_hidden", "guidance")
    assert (model.default_steps, model.default_cfg_scale, model.default_guidance) == (4, 1.0, 8.5)
    assert model.encoder is None
    assert StableDiffusion().load(source("lcm")).encoder is not None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompts": ("blurry, deformed hands", "Text"), "height": 32},
        {"prompts": ("a very long prompt " * 40, "Straße 日本 🍳")},
        {"cfg_scale": 1.0},
    ],
    ids=["default", "negative prompts, square", "over-long and unicode", "no guidance"],
)
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_picture_is_the_pipelines(source, kind: str, changes: dict):
    asked = replace(REQUEST, **changes)
    assert psnr(draw(StableDiffusion().load(source(kind)), asked), reference(source(kind), asked)) > 90


@pytest.mark.parametrize("clip", [False, True])
def test_a_distilled_picture_is_both_pipelines(source, tmp_path: Path, clip: bool):
    """With `clip_sample`, which StableDiffusionPipeline would correct and LatentConsistencyModelPipeline does not."""
    directory, scheduler = shutil.copytree(source("lcm"), tmp_path / "lcm"), LCMScheduler(**BETAS, clip_sample=clip)
    scheduler.save_pretrained(directory / "scheduler")
    model = LatentConsistency().load(directory)
    assert model.scheduler.config.clip_sample is clip
    picture = LatentConsistency().reference_image(directory, load_scheduler(directory), GUIDED)
    if clip:  # the table of a solver refuses it: what it does is not linear
        with pytest.raises(NonLinearSolverError, match="clip_sample is on"):
            table_from_solver(solver_from_name("lcm", model.scheduler), 4)
    else:
        assert psnr(draw(model, GUIDED), picture) > 90
    pipeline = load_pipeline(
        LatentConsistencyModelPipeline,
        directory,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    own = pipeline(
        list(GUIDED.prompts), height=48, width=32, num_inference_steps=4, guidance_scale=8.5, output_type="pt",
        generator=torch.Generator("cpu").manual_seed(GUIDED.seed),
    ).images  # fmt: skip
    assert psnr(picture, own) > 90


@pytest.mark.parametrize("kind", ["v1", "lcm"])
def test_over_an_image_the_picture_is_the_img2img_pipelines(source, kind: str):
    image = np.random.default_rng(0).random((48, 32, 3), dtype=np.float32)
    asked = replace(GUIDED if kind == "lcm" else REQUEST, init_image=image, strength=0.6)
    model = StableDiffusion().load(source(kind))
    picture = draw(model, asked)
    assert psnr(picture, reference(source(kind), asked)) > 90
    assert psnr(draw(model, replace(asked, init_image=image[::-1].copy())), picture) < 30


def test_the_picture_follows_prompt_guidance_and_seed(source):
    changes = {"prompts": ("two dogs running along the beach", "oil on canvas"), "seed": 4}
    for kind, asked, scale in (("v1", REQUEST, "cfg_scale"), ("v2", REQUEST, "cfg_scale"), ("lcm", GUIDED, "guidance")):
        model = StableDiffusion().load(source(kind))
        picture = draw(model, asked)
        for name, value in {**changes, scale: 2.0}.items():
            assert psnr(draw(model, replace(asked, **{name: value})), picture) < 30, (kind, name)


def test_sharded_weights_in_bfloat16_are_read(tmp_path: Path):
    source = make_stable_diffusion(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="60KB")
    assert (source / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    model = StableDiffusion().load(source)
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert psnr(draw(model, REQUEST), reference(source, REQUEST)) > 90


def test_weights_of_a_variant_are_read_and_plain_ones_beside_them(tmp_path: Path):
    source = make_stable_diffusion(
        tmp_path / "fp16", dtype=torch.float16, max_shard_size="60KB", variant="fp16", distilled=True
    )
    assert (source / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    assert (source / "text_encoder" / "model.safetensors.index.fp16.json").is_file()
    model = LatentConsistency().load(source)
    picture = draw(model, GUIDED)
    assert psnr(picture, reference(source, GUIDED)) > 90
    random_vae().save_pretrained(plain := tmp_path / "vae")  # one component with plain names
    shutil.rmtree(source / "vae")
    plain.rename(source / "vae")
    (source / "unet" / "LICENSE").touch()  # a name without a suffix
    assert psnr(draw(LatentConsistency().load(source), GUIDED), reference(source, GUIDED)) > 90


def test_the_keys_of_the_published_checkpoints_are_read(tmp_path: Path):
    """Their CLIP holds position_ids and a prefix, their VAE the attention of diffusers before 0.18."""
    source = make_stable_diffusion(tmp_path / "published")
    expected = draw(StableDiffusion().load(source), REQUEST)
    text, vae = source / "text_encoder" / "model.safetensors", source / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {f"text_model.{key}": value for key, value in safetensors.torch.load_file(text).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    safetensors.torch.save_file(tensors, text, {"format": "pt"})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {
        re.sub(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)", lambda found: old[found[0]], key): value
        for key, value in safetensors.torch.load_file(vae).items()
    }
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    safetensors.torch.save_file(tensors, vae, {"format": "pt"})
    assert torch.equal(draw(StableDiffusion().load(source), REQUEST), expected)


def test_an_old_scheduler_config_is_corrected_as_the_pipeline_does(tmp_path: Path):
    source = make_stable_diffusion(
        tmp_path / "old", scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1)
    )
    path = source / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": 0, "clip_sample": True}))
    model = StableDiffusion().load(source)
    assert (model.scheduler.config.steps_offset, model.scheduler.config.clip_sample) == (1, False)
    assert psnr(draw(model, REQUEST), reference(source, REQUEST)) > 90


def test_a_scheduler_that_scales_its_input(tmp_path: Path):
    source = make_stable_diffusion(tmp_path / "euler", scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1))
    assert psnr(draw(StableDiffusion().load(source), REQUEST), reference(source, REQUEST)) > 90


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 9}, "in_channels is 9, and StableDiffusionPipeline here has a U-Net with 4"),
        ({"num_class_embeds": 3}, "num_class_embeds is 3"),
        ({"cross_attention_dim": 24}, "text_encoder gives 32 channels, and unet takes cross_attention_dim=24"),
        ({"sample_size": None}, "sample_size is null"),
        ({"sample_size": 7}, "sample_size is 7, which is no multiple of 2"),
    ],
)
def test_a_unet_of_another_pipeline_is_refused(tmp_path: Path, config: dict, message: str):
    source = make_stable_diffusion(tmp_path / "other")
    random_unet(**config).save_pretrained(source / "unet")
    with pytest.raises(SourceError, match=message):
        StableDiffusion().load(source)
