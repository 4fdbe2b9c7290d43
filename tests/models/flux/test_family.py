"""The FLUX adapter: what it reads and refuses, and its picture against the pipelines themselves."""

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
from models.flow_matching import takes
from models.flux.family import Flux
from models.flux.reference import default_size, pipeline_settings, t5_tokens
from models.latent_diffusion import Lora, ReferenceRequest, SizeRange, SourceError, TextRule
from tests.models.drawing import psnr
from tests.models.flow_drawing import draw
from tests.pipelines.flux import flux_scheduler, make_flux, random_flux_transformer
from tests.pipelines.vae import make_vae, random_vae
from tests.pipelines.weights import write_adapter

REQUEST = ReferenceRequest(seed=3, steps=4, cfg_scale=1.0, prompts=("red heart", ""), height=24, width=48)
PICTURE = np.random.default_rng(0).random((24, 48, 3), dtype=np.float32)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOLVERS: dict[str, dict] = {
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": FLOW,
    "UniPCMultistepScheduler": FLOW,
}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("flux") / "dev")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16, sharded."""
    directory = tmp_path_factory.mktemp("flux") / "schnell"
    return make_flux(directory, schnell=True, dtype=torch.bfloat16, max_shard_size="300KB")


def solver(source: Path, name: str = "FlowMatchEulerDiscreteScheduler") -> SchedulerMixin:
    return scheduler_class(name).from_config(load_scheduler(source).config, **SOLVERS[name])


def both(
    source: Path, request: ReferenceRequest, name: str = "FlowMatchEulerDiscreteScheduler"
) -> tuple[Tensor, Tensor]:
    """The picture of the family's modules, and the pipeline's."""
    family = Flux()
    picture = draw(family.load(source), solver(source, name), request)
    expected = family.reference_image(source, solver(source, name), request)
    assert picture.shape == expected.shape
    return picture, expected


def test_reads_dev(dev: Path):
    model = Flux().load(dev)
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((16, 8, 8), (3, 32, 32), 16)
    assert (model.default_steps, model.default_cfg_scale, model.default_guidance) == (28, 1.0, 3.5)
    assert (model.default_strength, model.strength_rounds_up) == (0.6, True)
    assert model.sizes == SizeRange(multiple=2, minimum=4, maximum=16)
    assert model.conditioning == ("clip_pooled", "t5_hidden", "guidance", "grid_rows", "grid_columns")
    assert [encoder.prompt for encoder in model.text_encoders] == [TextRule(length=77), TextRule(length=512)]
    assert model.timesteps_depend_on_size


def test_reads_schnell(schnell: Path):
    assert (schnell / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    model = Flux().load(schnell)
    assert model.conditioning == ("clip_pooled", "t5_hidden", "grid_rows", "grid_columns")
    assert model.default_guidance is None
    assert not model.timesteps_depend_on_size
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {torch.float32}


CHANGES = {
    "default size": {"height": None, "width": None},
    "true guidance": {"cfg_scale": 3.0, "negative_prompts": ("blue car", "blurry, low quality")},
    "true guidance without a negative prompt": {"cfg_scale": 2.0},
    "over-long and unicode": {"prompts": ("a photo of a red cat " * 200, "Straße 日本 🍳"), "guidance": 1.5},
    "over an image": {"init_image": PICTURE, "strength": 0.5},
    "over an image, guided": {"init_image": PICTURE, "strength": 0.8, "cfg_scale": 2.0},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_picture_is_the_pipelines(dev: Path, changes: dict):
    assert psnr(*both(dev, replace(REQUEST, **changes))) > 90


@pytest.mark.parametrize("over", [{}, {"init_image": PICTURE, "strength": 0.6}], ids=["text", "image"])
@pytest.mark.parametrize("name", SOLVERS)
def test_with_every_solver(dev: Path, name: str, over: dict):
    assert psnr(*both(dev, replace(REQUEST, **over), name)) > 90


def test_without_guidance_and_shift(schnell: Path):
    assert psnr(*both(schnell, REQUEST)) > 90


def test_the_picture_follows_prompt_guidance_size_and_seed(dev: Path):
    model = Flux().load(dev)
    picture = draw(model, solver(dev), REQUEST)
    for changes in (
        {"prompts": ("two dogs running along the beach", "oil on canvas")},
        {"guidance": 1.0},
        {"cfg_scale": 2.0},
        {"steps": 5},
        {"seed": 4},
    ):
        assert psnr(draw(model, solver(dev), replace(REQUEST, **changes)), picture) < 30


def test_the_pipeline_is_left_alone_with_schedulers_that_it_can_call(dev: Path):
    found = {name: takes(solver(dev, name), pipeline_settings(solver(dev, name), 4, 8, 8)) for name in SOLVERS}
    assert [name for name, taken in found.items() if not taken] == ["FlowMatchHeunDiscreteScheduler"]


def test_the_shift_follows_the_size():
    """mu is 0.5 at 256 tokens and 1.15 at 4096: exp(mu)·s / (1 + (exp(mu) - 1)·s)."""
    for side, mu in ((32, 0.5), (128, 1.15)):
        scheduler = flux_scheduler()
        settings = pipeline_settings(scheduler, 4, side, side)
        assert settings["mu"] == pytest.approx(mu)
        scheduler.set_timesteps(**settings)
        shifted = [np.exp(mu) * s / (1 + (np.exp(mu) - 1) * s) for s in (1.0, 0.75, 0.5, 0.25)]
        assert scheduler.timesteps.numpy() / 1000 == pytest.approx(shifted)


def test_the_default_size_is_the_pipelines_or_what_the_vae_was_trained_at():
    vae = random_vae(16, levels=4)  # 8 pixels a latent
    sizes = {}
    for pixels in (1024, 2048, 64, 8, (512, 64), 32, None):
        vae.register_to_config(sample_size=pixels)
        sizes[pixels] = default_size(vae)
    assert sizes == {1024: 128, 2048: 128, 64: 8, 8: 4, (512, 64): 8, 32: 128, None: 128}


def test_the_tokens_of_t5_are_512_or_what_its_tokenizer_says(tmp_path: Path):
    assert t5_tokens(tmp_path) == 512
    path = tmp_path / "tokenizer_2" / "tokenizer_config.json"
    path.parent.mkdir()
    for length, tokens in ((64, 64), (1000, 512), (None, 512), (1e30, 512), (10**30, 512)):
        path.write_text(json.dumps({"model_max_length": length}))
        assert t5_tokens(tmp_path) == tokens
    path.write_text("{")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: not JSON"):
        t5_tokens(tmp_path)


def test_an_adapter_is_merged_as_the_reference_adds_it(dev: Path, tmp_path: Path):
    layers = ("transformer_blocks.0.attn.to_k", "single_transformer_blocks.1.proj_mlp", "norm_out.linear")
    loras = [Lora(write_adapter(tmp_path / "style.safetensors", random_flux_transformer(), layers), 0.7)]
    picture = draw(Flux().load(dev, loras), solver(dev), REQUEST)
    assert psnr(picture, Flux().reference_image(dev, solver(dev), REQUEST, loras)) > 90
    assert psnr(picture, draw(Flux().load(dev), solver(dev), REQUEST)) < 30


def test_parts_of_different_models_are_refused(dev: Path, tmp_path: Path):
    source = shutil.copytree(dev, tmp_path / "mixed")
    shutil.rmtree(source / "vae")
    make_vae(source / "vae")
    with pytest.raises(SourceError, match="in_channels is 64, and needs to be 16: 4 times the VAE's latent channels"):
        Flux().load(source)


def test_a_model_that_takes_a_picture_beside_the_latents_is_refused(dev: Path, tmp_path: Path):
    """FLUX.1-Fill and -Canny have more input channels than they predict; they belong to other pipelines."""
    source = shutil.copytree(dev, tmp_path / "fill")
    random_flux_transformer(layers=1, out_channels=32).save_pretrained(source / "transformer")
    with pytest.raises(SourceError, match="out_channels is 32, and needs to be 64: in_channels"):
        Flux().load(source)
