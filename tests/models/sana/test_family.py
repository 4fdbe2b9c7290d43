"""The SANA adapter: what it reads and refuses, and its picture against the pipeline itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SanaPipeline
from transformers import GemmaTokenizer

from models.components import load_scheduler
from models.latent_diffusion import GRID_ROWS, Lora, ReferenceRequest, SizeRange, SourceError, TextRule
from models.sana.family import Sana, instruction
from tests.models.drawing import draw, psnr
from tests.pipelines.sana import make_sana, random_sana_transformer
from tests.pipelines.weights import write_adapter

REQUEST = ReferenceRequest(
    seed=3, steps=4, cfg_scale=4.5, prompts=("  A Photo of a red cat ", ""), height=128, width=192
)


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sana(tmp_path_factory.mktemp("sana") / "sana")


def reference(source: Path, request: ReferenceRequest) -> torch.Tensor:
    return Sana().reference_image(source, load_scheduler(source), request)


def test_reads_a_directory(sana: Path):
    model = Sana().load(sana)
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((8, 8, 8), (3, 256, 256), 8)
    assert (model.default_steps, model.default_cfg_scale) == (20, 4.5)
    assert model.sizes == SizeRange(multiple=1, minimum=2, maximum=16)
    assert GRID_ROWS not in model.conditioning  # no positions, so no input without effect
    (encoder,) = model.text_encoders
    assert encoder.negative == TextRule(length=300, lower_strip=True)
    tokens = len(GemmaTokenizer.from_pretrained(sana / "tokenizer").encode(instruction()))
    assert encoder.prompt == TextRule(length=tokens + 298, prefix=instruction(), lower_strip=True)


def test_the_instruction_is_joined_as_the_pipeline_joins_it():
    assert instruction().startswith("Given a user prompt, generate an 'Enhanced prompt'")
    assert instruction().endswith("commentary or evaluations:\nUser Prompt: ")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompts": ("blurry, deformed hands", "Text"), "height": 160, "width": 160},
        {"prompts": ("a very long prompt " * 150, "Straße 日本 🍳"), "negative_prompts": ("text " * 400, "")},
        {"cfg_scale": 1.0},
        {"height": None, "width": None},
    ],
    ids=["default", "negative prompts, square", "over-long and unicode", "no guidance", "default size"],
)
def test_the_picture_is_the_pipelines(sana: Path, changes: dict):
    asked = replace(REQUEST, **changes)
    picture, expected = draw(Sana().load(sana), asked), reference(sana, asked)
    assert picture.shape == expected.shape
    assert psnr(picture, expected) > 90


def test_the_picture_follows_prompt_guidance_and_seed(sana: Path):
    model = Sana().load(sana)
    picture = draw(model, REQUEST)
    for changes in (
        {"prompts": ("two dogs running along the beach", "oil on canvas")},
        {"negative_prompts": ("blurry", "low quality")},
        {"cfg_scale": 2.0},
        {"steps": 5},
        {"seed": 4},
    ):
        assert psnr(draw(model, replace(REQUEST, **changes)), picture) < 30


def test_sharded_weights_in_bfloat16_and_the_other_options(tmp_path: Path):
    options = {"interpolation_scale": 1.0, "qk_norm": "rms_norm_across_heads", "timestep_scale": 0.5}
    source = make_sana(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="30KB", variant="bf16", **options)
    assert (source / "transformer" / "diffusion_pytorch_model.safetensors.index.bf16.json").is_file()
    model = Sana().load(source)
    assert GRID_ROWS in model.conditioning
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert psnr(draw(model, REQUEST), reference(source, REQUEST)) > 90


def test_an_adapter_is_merged_as_the_reference_adds_it(sana: Path, tmp_path: Path):
    layers = ("transformer_blocks.0.attn2.to_k", "transformer_blocks.1.attn1.to_out.0", "time_embed.linear")
    loras = [Lora(write_adapter(tmp_path / "style.safetensors", random_sana_transformer(), layers), 0.7)]
    picture = draw(Sana().load(sana, loras), REQUEST)
    assert psnr(picture, Sana().reference_image(sana, load_scheduler(sana), REQUEST, loras)) > 90
    assert psnr(picture, draw(Sana().load(sana), REQUEST)) < 30


def test_guidance_embeddings_are_refused_as_the_pipeline_fails_with_them(tmp_path: Path):
    source = make_sana(tmp_path / "sprint", layers=1, guidance_embeds=True)
    with pytest.raises(SourceError, match="of SanaSprintPipeline"):
        Sana().load(source)
    pipeline = SanaPipeline.from_pretrained(source)
    with pytest.raises(TypeError, match="batch_size"):
        pipeline("a cat", height=64, width=64, num_inference_steps=1, use_resolution_binning=False)


def test_output_channels_that_are_no_variance_are_refused(tmp_path: Path):
    source = make_sana(tmp_path / "odd", layers=1, out_channels=12)
    with pytest.raises(SourceError, match="12 output channels for 8 of the latents"):
        Sana().load(source)
