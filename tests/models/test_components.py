"""Components, schedulers and weight files that cannot be read are one line each."""

import json
from pathlib import Path

import pytest
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler
from transformers import CLIPTextModel

from models.components import load_component, load_scheduler
from models.latent_diffusion import SourceError
from models.text.loading import load_text_model
from models.weights import is_read, variant_of
from tests.pipelines.text_encoders import random_clip
from tests.pipelines.tokenizers import make_clip_tokenizer
from tests.pipelines.vae import make_vae


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model.fp16.safetensors", "model.bf16-00001-of-00002.safetensors"], "bf16"),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], "fp16"),
        (["flux.safetensors"], None),
    ],
)
def test_plain_weights_before_a_variant(tmp_path: Path, names: list[str], variant: str | None):
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant
    assert [name for name in names if is_read(tmp_path / name)] == [
        name for name in names if name != "flux.safetensors" and (f".{variant}" in name or name == "model.safetensors")
    ]


def test_components_that_are_not_read(tmp_path: Path):
    def refused(message: str) -> None:
        with pytest.raises(SourceError, match=message) as error:
            load_component(AutoencoderKL, tmp_path, "vae")
        assert "\n" not in str(error.value)

    directory = make_vae(tmp_path / "vae")
    weights = directory / "diffusion_pytorch_model.safetensors"
    weights.rename(directory / "other.safetensors")
    refused(r"no .safetensors weights .*other.*convert the pipeline once: python -c \"from diffusers import .*'\)\"$")
    (directory / "other.safetensors").rename(weights)
    change(directory / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    refused(r"quantised weights are not read .*; give the bfloat16 or float16 checkpoint$")
    (directory / "config.json").write_text("{")
    refused(r"vae/config\.json: not JSON")
    AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)).save_pretrained(
        directory
    )
    refused(r"vae: is a AutoencoderTiny; AutoencoderKL is supported$")


def test_a_git_lfs_pointer_of_a_text_encoder(tmp_path: Path):
    random_clip(make_clip_tokenizer(tmp_path / "tokenizer")).save_pretrained(tmp_path / "text_encoder")
    weights = tmp_path / "text_encoder" / "model.safetensors"
    for content in (weights.read_bytes()[:1000], b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        with pytest.raises(SourceError, match=r"text_encoder: [^\n]+$"):
            load_text_model(CLIPTextModel, tmp_path, "text_encoder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ("{}", "no _class_name"),
        ('{"_class_name": "NoScheduler"}', "'NoScheduler' is no scheduler of diffusers"),
        ('{"_class_name": "DDIMScheduler", "beta_schedule": "cosine_of_moon"}', "cosine_of_moon"),
    ],
)
def test_schedulers_that_are_not_read(tmp_path: Path, content: str, message: str):
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(content)
    with pytest.raises(SourceError, match=rf"scheduler_config\.json: .*{message}[^\n]*$"):
        load_scheduler(tmp_path)
