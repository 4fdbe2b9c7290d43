"""The PixArt adapter: what it reads and refuses, and its picture against the pipelines themselves."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models.components import load_scheduler
from models.latent_diffusion import Lora, ReferenceRequest, SizeRange, SourceError, TextRule
from models.pixart.family import PixArt
from tests.models.drawing import draw, psnr
from tests.pipelines.pixart import make_pixart, random_pixart_transformer
from tests.pipelines.weights import write_adapter

ALPHA, SIGMA = "PixArtAlphaPipeline", "PixArtSigmaPipeline"
REQUEST = ReferenceRequest(seed=3, steps=4, cfg_scale=4.5, prompts=("  A Photo of a red cat ", ""), height=64, width=40)


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pixart(tmp_path_factory.mktemp("pixart") / "sigma")


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As PixArt-XL-2-1024-MS is published: pixel sizes, legacy names, a tensor that nothing reads."""
    return make_pixart(tmp_path_factory.mktemp("pixart") / "alpha", ALPHA, sample_size=128, as_published=True)


def reference(source: Path, pipeline: str, request: ReferenceRequest) -> torch.Tensor:
    return PixArt(pipeline).reference_image(source, load_scheduler(source), request)


def test_reads_a_directory(sigma: Path):
    model = PixArt(SIGMA).load(sigma)
    assert (model.latent_shape, model.image_shape, model.guided_channels) == ((4, 8, 8), (3, 32, 32), 4)
    assert (model.default_steps, model.default_cfg_scale) == (20, 4.5)
    assert model.sizes == SizeRange(multiple=2, minimum=4, maximum=16)
    (encoder,) = model.text_encoders
    assert encoder.prompt == encoder.negative == TextRule(length=300, lower_strip=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompts": ("blurry, deformed hands", "Text"), "height": 32, "width": 32},
        {"prompts": ("a very long prompt " * 60, "Straße 日本 🍳")},
        {"cfg_scale": 1.0},
    ],
    ids=["default", "negative prompts, square", "over-long and unicode", "no guidance"],
)
@pytest.mark.parametrize("pipeline", [ALPHA, SIGMA])
def test_the_picture_is_the_pipelines(request, pipeline: str, changes: dict):
    source = request.getfixturevalue("alpha" if pipeline == ALPHA else "sigma")
    asked = replace(REQUEST, **changes)
    assert psnr(draw(PixArt(pipeline).load(source), asked), reference(source, pipeline, asked)) > 90


def test_the_picture_follows_prompt_guidance_and_seed(sigma: Path):
    model = PixArt(SIGMA).load(sigma)
    picture = draw(model, REQUEST)
    for changes in (
        {"prompts": ("two dogs running along the beach", "oil on canvas")},
        {"negative_prompts": ("blurry", "low quality")},
        {"cfg_scale": 2.0},
        {"seed": 4},
    ):
        assert psnr(draw(model, replace(REQUEST, **changes)), picture) < 30


def test_sharded_weights_in_bfloat16_are_read(tmp_path: Path):
    source = make_pixart(tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="30KB")
    assert (source / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert (source / "text_encoder" / "model.safetensors.index.json").is_file()
    model = PixArt(SIGMA).load(source)
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert psnr(draw(model, REQUEST), reference(source, SIGMA, REQUEST)) > 90


def test_a_sigma_that_asks_for_the_pixel_size_is_refused(tmp_path: Path):
    source = make_pixart(tmp_path / "confused", layers=1, use_additional_conditions=True)
    with pytest.raises(SourceError, match="only PixArtAlphaPipeline at sample_size 128 gives them"):
        PixArt(SIGMA).load(source)


def test_output_channels_that_are_no_variance_are_refused(tmp_path: Path):
    source = make_pixart(tmp_path / "odd", layers=1, out_channels=6)
    with pytest.raises(SourceError, match="6 output channels for 4 of the latents"):
        PixArt(SIGMA).load(source)


def test_only_the_unused_tensor_of_published_checkpoints_is_passed_over(alpha: Path, tmp_path: Path):
    source = make_pixart(tmp_path / "more", ALPHA, layers=1, as_published=True)
    path = source / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    assert "caption_projection.y_embedding" in tensors
    safetensors.torch.save_file(tensors | {"caption_projection.z": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(SourceError, match=r"unexpected keys: caption_projection\.z$"):
        PixArt(ALPHA).load(source)


def test_an_adapter_is_merged_as_the_reference_adds_it(sigma: Path, tmp_path: Path):
    layers = ("transformer_blocks.0.attn2.to_k", "transformer_blocks.1.ff.net.2", "adaln_single.linear")
    loras = [Lora(write_adapter(tmp_path / "style.safetensors", random_pixart_transformer(), layers), 0.7)]
    adapted = PixArt(SIGMA).load(sigma, loras)
    picture = draw(adapted, REQUEST)
    assert psnr(picture, PixArt(SIGMA).reference_image(sigma, load_scheduler(sigma), REQUEST, loras)) > 90
    assert psnr(picture, draw(PixArt(SIGMA).load(sigma), REQUEST)) < 30
