"""Text encoders from disk: bf16 and shards, and what does not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5EncoderModel

from models.latent_diffusion import SourceError
from models.stored_weights import values_of
from models.text.clip import clip_encoder
from models.text.ldm_bert import ldm_bert_encoder
from models.text.loading import load_text_model
from tests.pipelines.text_encoders import random_clip, random_ldm_bert, random_t5
from tests.pipelines.tokenizers import make_bert_tokenizer, make_clip_tokenizer, make_t5_tokenizer


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A source with a CLIP."""
    random_clip(make_clip_tokenizer(tmp_path / "tokenizer")).save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def test_bfloat16_in_shards_is_read_as_float32(tmp_path: Path) -> None:
    original = random_t5(make_t5_tokenizer(tmp_path / "tokenizer")).to(torch.bfloat16)
    original.save_pretrained(tmp_path / "text_encoder", max_shard_size="50KB")
    assert len(list((tmp_path / "text_encoder").glob("model-*.safetensors"))) > 1
    loaded = load_text_model(T5EncoderModel, tmp_path, "text_encoder")
    assert not loaded.training
    for name, parameter in original.named_parameters():
        assert loaded.get_parameter(name).dtype is torch.float32
        assert torch.equal(values_of(loaded.get_parameter(name)), parameter.float())


def test_published_names_are_read(clip: Path) -> None:
    """Files from before transformers 5: a prefix on every name, and a table of positions that is no weight."""
    path = clip / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    before = {n: values_of(p) for n, p in load_text_model(CLIPTextModel, clip, "text_encoder").named_parameters()}
    save_file(tensors, path, metadata={"format": "pt"})
    after = {n: values_of(p) for n, p in load_text_model(CLIPTextModel, clip, "text_encoder").named_parameters()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loading_is_quiet(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_text_model(CLIPTextModel, clip, "text_encoder")
    assert capfd.readouterr() == ("", "")


def test_a_weight_too_few(clip: Path) -> None:
    path = clip / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["final_layer_norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"weights do not fit config.json: missing keys: final_layer_norm.weight$"):
        load_text_model(CLIPTextModel, clip, "text_encoder")


def test_a_projection_that_is_not_there(clip: Path) -> None:
    with pytest.raises(SourceError, match=r"missing keys: text_projection.weight$"):
        clip_encoder(clip, {"pooled": "projected"})


def test_pickled_weights_are_not_read(clip: Path) -> None:
    (clip / "text_encoder" / "model.safetensors").rename(clip / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"found: pytorch_model.bin\); pickled weights are not read"):
        load_text_model(CLIPTextModel, clip, "text_encoder")


def test_there_must_be_a_config(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"text_encoder: no config\.json"):
        load_text_model(CLIPTextModel, tmp_path, "text_encoder")


def test_more_tokens_than_positions(clip: Path) -> None:
    path = clip / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 128}))
    with pytest.raises(SourceError, match="model_max_length=128, but text_encoder has positions for 77 tokens"):
        clip_encoder(clip, {"hidden": "last"})
    random_ldm_bert(make_bert_tokenizer(clip / "bert_tokenizer"), length=64).save_pretrained(clip / "bert")
    with pytest.raises(SourceError, match="positions for 64 tokens; the pipeline gives it 77"):
        ldm_bert_encoder(clip, "hidden", tokenizer="bert_tokenizer")
