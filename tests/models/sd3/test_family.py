"""The Stable Diffusion 3 adapter: what it reads and refuses, and its picture against the pipelines themselves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from models.components import load_scheduler, scheduler_class
from models.latent_diffusion import Lora, ReferenceRequest, SizeRange, SourceError, TextRule
from models.sd3.family import StableDiffusion3
from models.sd3.reference import TimestepRule, has_t5
from tests.models.drawing import psnr
from tests.models.flow_drawing import draw
from tests.pipelines.sd3 import make_sd3, random_sd3_transformer
from tests.pipelines.vae import make_vae
from tests.pipelines.weights import write_adapter

REQUEST = ReferenceRequest(seed=3, steps=4, cfg_scale=7.0, prompts=("red heart", ""), height=24, width=48)
PICTURE = np.random.default_rng(0).random((24, 48, 3), dtype=np.float32)
EULER, HEUN, DPM = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "DPMSolverMultistepScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOLVERS: dict[str, tuple[str, dict]] = {
    "Euler": (EULER, {}),
    "Euler with a shift by size": (EULER, {"use_dynamic_shifting": True}),
    "Heun": (HEUN, {}),
    "Heun that is asked for a shift": (HEUN, {"use_dynamic_shifting": True}),
    "DPM-Solver++": (DPM, FLOW),
    "UniPC with a shift by size": ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
}


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("sd3") / "medium")


@pytest.fixture(scope="module")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 3.5 in bfloat16, sharded, without T5."""
    directory = tmp_path_factory.mktemp("sd3") / "without-t5"
    return make_sd3(directory, sd35=True, t5=False, dtype=torch.bfloat16, max_shard_size="300KB")


def solver(source: Path, name: str = "Euler") -> SchedulerMixin:
    class_name, settings = SOLVERS[name]
    return scheduler_class(class_name).from_config(load_scheduler(source).config, **settings)


def both(source: Path, request: ReferenceRequest, name: str = "Euler") -> tuple[Tensor, Tensor]:
    """The picture of the family's modules, and the pipeline's."""
    family = StableDiffusion3()
    picture = draw(family.load(source), solver(source, name), request)
    expected = family.reference_image(source, solver(source, name), request)
    assert picture.shape == expected.shape
    return picture, expected


def test_reads_a_directory(medium: Path):
    model = StableDiffusion3().load(medium)
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((16, 8, 8), (3, 32, 32), 16)
    assert (model.default_steps, model.default_cfg_scale, model.default_guidance) == (28, 7.0, None)
    assert (model.default_strength, model.strength_rounds_up) == (0.6, True)
    assert model.sizes == SizeRange(multiple=2, minimum=4, maximum=16)
    clips = ("clip_hidden", "clip_pooled", "clip_2_hidden", "clip_2_pooled")
    assert model.conditioning == (*clips, "t5_hidden", "grid_rows", "grid_columns")
    assert [encoder.prompt.length for encoder in model.text_encoders] == [77, 77, 256]
    assert not model.timesteps_depend_on_size
    assert not [known for known in model.overflows if "SD 3.5" in known.reason]


def test_reads_a_directory_without_t5(without_t5: Path):
    assert json.loads((without_t5 / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    assert (without_t5 / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    model = StableDiffusion3().load(without_t5)
    assert [encoder.prompt for encoder in model.text_encoders] == [TextRule(length=77)] * 2
    assert "t5_hidden" not in model.conditioning
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {torch.float32}
    assert [known.pattern for known in model.overflows][1] == r"transformer_blocks\.(0|1|2)\.ff(_context)?\.net\.2\b"


CHANGES = {
    "default size": {"height": None, "width": None},
    "negative prompts": {"cfg_scale": 3.0, "negative_prompts": ("blue car", "blurry, low quality")},
    "no guidance": {"cfg_scale": 1.0},
    "over-long and unicode": {"prompts": ("a photo of a red cat " * 100, "Straße 日本 🍳")},
    "over an image": {"init_image": PICTURE, "strength": 0.5},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_picture_is_the_pipelines(medium: Path, changes: dict):
    assert psnr(*both(medium, replace(REQUEST, **changes))) > 90


@pytest.mark.parametrize("over", [{}, {"init_image": PICTURE, "strength": 0.6}], ids=["text", "image"])
@pytest.mark.parametrize("name", SOLVERS)
def test_with_every_solver(medium: Path, name: str, over: dict):
    assert psnr(*both(medium, replace(REQUEST, **over), name)) > 90


def test_without_t5(without_t5: Path):
    assert psnr(*both(without_t5, REQUEST)) > 90


def test_the_picture_follows_prompt_guidance_and_seed(medium: Path):
    model = StableDiffusion3().load(medium)
    picture = draw(model, solver(medium), REQUEST)
    for changes in (
        {"prompts": ("two dogs running along the beach", "oil on canvas")},
        {"negative_prompts": ("blurry", "low quality")},
        {"cfg_scale": 2.0},
        {"steps": 6},
        {"seed": 4},
    ):
        assert psnr(draw(model, solver(medium), replace(REQUEST, **changes)), picture) < 30


def test_a_shift_by_size_follows_the_size(medium: Path):
    tables = []
    for side in (8, 16):
        scheduler = solver(medium, "Euler with a shift by size")
        TimestepRule(patch=2)(scheduler, 4, side, side)
        tables.append(scheduler.timesteps)
    assert tables[0][1] < tables[1][1]


def test_an_adapter_is_merged_as_the_reference_adds_it(medium: Path, tmp_path: Path):
    layers = ("transformer_blocks.0.attn.to_k", "transformer_blocks.1.ff.net.2", "norm_out.linear")
    loras = [Lora(write_adapter(tmp_path / "style.safetensors", random_sd3_transformer(), layers), 0.7)]
    family = StableDiffusion3()
    picture = draw(family.load(medium, loras), solver(medium), REQUEST)
    assert psnr(picture, family.reference_image(medium, solver(medium), REQUEST, loras)) > 90
    assert psnr(picture, draw(family.load(medium), solver(medium), REQUEST)) < 30


def test_parts_of_different_models_are_refused(medium: Path, without_t5: Path, tmp_path: Path):
    source = shutil.copytree(medium, tmp_path / "mixed")
    shutil.rmtree(source / "vae")
    make_vae(source / "vae")
    with pytest.raises(SourceError, match="in_channels is 16, and needs to be 4: the VAE's latent channels"):
        StableDiffusion3().load(source)
    source = shutil.copytree(medium, tmp_path / "clips")
    shutil.rmtree(source / "text_encoder_2")
    shutil.copytree(medium / "text_encoder", source / "text_encoder_2")
    with pytest.raises(SourceError, match="pooled_projection_dim is 80, and needs to be 64: the projections"):
        StableDiffusion3().load(source)


def test_null_for_t5_is_refused_as_diffusers_cannot_read_it(tmp_path: Path):
    (tmp_path / "model_index.json").write_text('{"text_encoder_3": null}')
    with pytest.raises(SourceError, match=r"text_encoder_3 is None; write \[null, null\]"):
        has_t5(tmp_path)
