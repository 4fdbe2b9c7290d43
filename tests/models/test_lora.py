"""Adapters of pipelines that load them themselves: U-Net and text encoders, diffusers' keys and kohya's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models.components import load_scheduler
from models.latent_diffusion import Lora, ReferenceRequest, SourceError
from models.sdxl.family import SDXL
from models.stable_diffusion.family import StableDiffusion
from models.stored_weights import values_of
from tests.models.drawing import draw, psnr
from tests.pipelines.sdxl import CLIP_G, CLIP_L, make_sdxl
from tests.pipelines.stable_diffusion import make_stable_diffusion

REQUEST = ReferenceRequest(seed=3, steps=3, cfg_scale=3.0, prompts=("a red cat",), negative_prompts=("ugly",))
RANK, ALPHA = 2, 4.0
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (16, 32),
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "mid_block.resnets.0.time_emb_proj": (32, 64),
}
# diffusers takes a text encoder's keys for no adapter if out_proj is not among them; every trainer adapts it.
TEXT = {f"text_model.encoder.layers.0.{m}": (32, 32) for m in ("self_attn.q_proj", "self_attn.out_proj")}


def factors(shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(RANK, shape[1], generator=generator) / shape[1] ** 0.5
    return a, torch.randn(shape[0], RANK, generator=generator)


def write(file: Path, modules: dict[str, tuple[int, int]], kohya: bool = False) -> Path:
    """`modules` by their paths with the component first: diffusers' keys, or kohya's with their alpha."""
    tensors = {}
    for seed, (path, shape) in enumerate(modules.items()):
        a, b = factors(shape, seed)
        if kohya:
            name = path.replace("text_encoder.", "te.").replace(".", "_")
            tensors |= {f"lora_{name}.lora_down.weight": a, f"lora_{name}.lora_up.weight": b}
            tensors[f"lora_{name}.alpha"] = torch.tensor(ALPHA)
        else:
            tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    safetensors.torch.save_file(tensors, file)
    return file


def of_both() -> dict[str, tuple[int, int]]:
    return {f"unet.{k}": v for k, v in UNET.items()} | {f"text_encoder.{k}": v for k, v in TEXT.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stable_diffusion(tmp_path_factory.mktemp("lora") / "sd")


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    return lambda modules, kohya=False: write(tmp_path / f"{len(modules)}-{kohya}.safetensors", modules, kohya)


@pytest.mark.parametrize("kohya", [False, True], ids=["diffusers", "kohya"])
def test_merging_adds_scale_times_alpha_by_rank_times_b_times_a(source: Path, adapter, kohya: bool):
    modules = of_both()
    plain = StableDiffusion().load(source)
    merged = StableDiffusion().load(source, [Lora(adapter(modules, kohya), 0.5)])
    for seed, (path, shape) in enumerate(modules.items()):
        a, b = factors(shape, seed)
        component, _, name = path.partition(".")
        before, after = (
            model.denoiser.unet if component == "unet" else model.text_encoders[0].module.tower
            for model in (plain, merged)
        )
        name = name.removeprefix("text_model.")
        change = 0.5 * (ALPHA / RANK if kohya else 1.0) * b @ a
        expected = values_of(before.get_submodule(name).weight) + change
        actual = values_of(after.get_submodule(name).weight)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6, msg=path)
    for part in ("denoiser", "decoder"):
        names = [dict(getattr(model, part).named_parameters()).keys() for model in (plain, merged)]
        assert names[0] == names[1]


@pytest.mark.parametrize("kohya", [False, True], ids=["diffusers", "kohya"])
def test_the_picture_is_that_of_a_pipeline_with_two_adapters_beside_its_weights(source: Path, adapter, kohya: bool):
    only_unet = {f"unet.{k}": v for k, v in UNET.items()}
    loras = [Lora(adapter(of_both(), kohya), 0.7), Lora(adapter(only_unet, kohya), -0.4)]
    family, scheduler = StableDiffusion(), load_scheduler(source)
    picture = draw(family.load(source, loras), REQUEST)
    assert psnr(picture, family.reference_image(source, scheduler, REQUEST, loras)) > 90
    assert psnr(picture, draw(family.load(source), REQUEST)) < 30
    assert psnr(picture, draw(family.load(source, [replace(loras[0], scale=0.1), loras[1]]), REQUEST)) < 40


def test_an_adapter_of_the_layer_that_sdxl_does_not_use(tmp_path: Path, adapter):
    """CLIP-L has two layers here, and hidden_states[-2] is what the first one returns."""
    source = make_sdxl(tmp_path / "sdxl")
    modules = {f"text_encoder.text_model.encoder.layers.{n}.self_attn.out_proj": (CLIP_L, CLIP_L) for n in (0, 1)}
    modules |= {"text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj": (CLIP_G, CLIP_G)}
    loras = [Lora(adapter(modules), 1.0)]
    picture = draw(SDXL().load(source, loras), REQUEST)
    assert psnr(picture, SDXL().reference_image(source, load_scheduler(source), REQUEST, loras)) > 90
    assert psnr(picture, draw(SDXL().load(source), REQUEST)) < 40


def test_an_adapter_that_does_not_fit_is_one_line(source: Path, tmp_path: Path, adapter):
    def refused(file: Path, message: str) -> None:
        with pytest.raises(SourceError, match=message):
            StableDiffusion().load(source, [Lora(file, 1.0)])

    path = next(iter(UNET))
    refused(adapter({f"unet.{path}": (16, 48)}), "size mismatch for down_blocks")
    more = {f"unet.{path}": (16, 32), f"unet.{path.replace('to_k', 'to_w')}": (16, 32)}
    refused(adapter(more), "it adapts 2 modules and this model has 1 of them")
    refused(adapter({f"transformer.{path}": (16, 32), "transformer.x": (4, 4), "y": (4, 4)}), "it adapts 3 modules")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({f"unet.{path}.weight": torch.zeros(2)}, other)
    refused(other, "none of its 1 tensors is a LoRA factor")
    safetensors.torch.save_file(
        {f"unet.{path}.lora_A.weight": torch.zeros(2, 32), f"{path}.dora_scale": torch.zeros(2)}, other
    )
    refused(other, "a DoRA adapter")
    refused(tmp_path / "absent.safetensors", "no such file")
