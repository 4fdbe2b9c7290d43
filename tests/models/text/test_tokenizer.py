"""One form of every tokenizer: the ids are those that transformers gives the pipeline."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from latentc.schema import TextRule
from latentc.text import encode_texts, tokenizer_from_json
from transformers.utils import is_sentencepiece_available

from models.latent_diffusion import SourceError
from models.text import tokenizer as tokenizer_module
from models.text.tokenizer import load_tokenizer
from tests.pipelines.tokenizers import (
    make_bert_tokenizer,
    make_clip_tokenizer,
    make_gemma_tokenizer,
    make_t5_tokenizer,
)

MAKERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "CLIP-L": ("CLIPTokenizer", make_clip_tokenizer),
    "CLIP-G": ("CLIPTokenizer", lambda directory: make_clip_tokenizer(directory, pad="!")),
    "T5": ("T5TokenizerFast", make_t5_tokenizer),
    "T5, sentencepiece": ("T5Tokenizer", lambda directory: make_t5_tokenizer(directory, fast=False)),
    "Gemma": ("GemmaTokenizerFast", make_gemma_tokenizer),
    "BERT": ("BertTokenizer", make_bert_tokenizer),
}
FIXED = ["", " ", "\n\t", "a photo of a red cat", "x" * 500, "it's the artist's best work!!", "  two  spaces  "]
PARTS = [
    "red ", "cat", "!", " ", "\n", "<|endoftext|>", "<|startoftext|>", "</s>", "<pad>", "<bos>", "[SEP]", "<0x41>",
    "don't", "<extra_id_0>", "▁", "漢字", "🙂", "👨\u200d👩", "naïve", "e\u0301", "\u00a0", "Ａ", "…", "İ", "ﬁ",
    "ß", "\u200b",
]  # fmt: skip


def texts() -> list[str]:
    """Fixed ones, and mixtures of what tokenizers treat in ways of their own."""
    rng = random.Random(0)
    return FIXED + ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 90))) for _ in range(60)]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("saved_again", [False, True], ids=["as published", "saved by transformers 5"])
def test_ids_are_those_of_transformers(name: str, saved_again: bool, tmp_path: Path) -> None:
    if name == "T5, sentencepiece" and not is_sentencepiece_available():
        pytest.skip("sentencepiece is not installed")
    class_name, make = MAKERS[name]
    directory = make(tmp_path / "tokenizer")
    (tmp_path / "model_index.json").write_text(json.dumps({"tokenizer": ["transformers", class_name]}))
    reference = getattr(transformers, class_name).from_pretrained(directory)
    if saved_again:
        shutil.rmtree(directory)
        reference.save_pretrained(directory)
    reference.padding_side = "right"  # as SanaPipeline sets it; the others are
    loaded = load_tokenizer(tmp_path, "tokenizer")
    backend = tokenizer_from_json(loaded.tokenizer.to_str().encode(), "tokenizer.json")
    assert loaded.tokenizer.truncation is None
    assert loaded.tokenizer.padding is None
    assert loaded.pad_id == reference.pad_token_id
    for length in (77, 12):
        encoded = encode_texts(backend, texts(), TextRule(length=length), loaded.pad_id)
        expected = reference(texts(), padding="max_length", truncation=True, max_length=length, return_tensors="np")
        assert encoded.ids.tolist() == expected.input_ids.tolist()
        assert encoded.mask.tolist() == expected.attention_mask.tolist()


def test_normalisation_is_part_of_it(tmp_path: Path) -> None:
    """sentencepiece's compiled rules: without them the three below would be unknown tokens."""
    make_t5_tokenizer(tmp_path / "tokenizer")
    backend = load_tokenizer(tmp_path, "tokenizer").tokenizer
    assert backend.encode("Ａ\u00a0b…").ids == backend.encode("A b...").ids
    assert backend.encode("A b").ids != backend.encode("A c").ids


def test_limits(tmp_path: Path) -> None:
    make_clip_tokenizer(tmp_path / "clip", length=64)
    make_gemma_tokenizer(tmp_path / "gemma")
    assert load_tokenizer(tmp_path, "clip").max_length == 64
    assert load_tokenizer(tmp_path, "gemma").max_length is None


@pytest.mark.parametrize("missing", ["sentencepiece", "protobuf"])
def test_a_missing_package_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_t5_tokenizer(tmp_path / "tokenizer", fast=False)
    for package in ("sentencepiece", "protobuf"):
        monkeypatch.setattr(tokenizer_module, f"is_{package}_available", lambda there=package != missing: there)
    with pytest.raises(SourceError, match=f"spiece.model .* is read with {missing}: pip install {missing}$"):
        load_tokenizer(tmp_path, "tokenizer")


def test_a_tokenizer_json_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_t5_tokenizer(tmp_path / "tokenizer")
    monkeypatch.setattr(tokenizer_module, "is_sentencepiece_available", lambda: False)
    load_tokenizer(tmp_path, "tokenizer")


@pytest.mark.skipif(not is_sentencepiece_available(), reason="sentencepiece is not installed")
def test_a_damaged_sentencepiece_file(tmp_path: Path) -> None:
    make_t5_tokenizer(tmp_path / "tokenizer", fast=False)
    path = tmp_path / "tokenizer" / "spiece.model"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"spiece\.model is not a sentencepiece file, or a damaged one$"):
        load_tokenizer(tmp_path, "tokenizer")


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="tokenizer_2: not found"):
        load_tokenizer(tmp_path, "tokenizer_2")


@pytest.mark.parametrize(
    "entry", [["transformers", "CLIPModel"], ["my_code", "CLIPTokenizer"], ["transformers", "x.y"]]
)
def test_only_tokenizers_of_transformers(entry: list[str], tmp_path: Path) -> None:
    make_clip_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "model_index.json").write_text(json.dumps({"tokenizer": entry}))
    with pytest.raises(SourceError, match=f"'{entry[1]}' of '{entry[0]}', which is no tokenizer class"):
        load_tokenizer(tmp_path, "tokenizer")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pad_token": None}, "no pad token"),
        ({"truncation_side": "left"}, "truncation_side='left'; only"),
        ({"split_special_tokens": True}, "split_special_tokens=True"),
    ],
)
def test_what_would_give_other_ids_is_refused(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    make_gemma_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(SourceError, match=reason) as refused:
        load_tokenizer(tmp_path, "tokenizer")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_one_line(file: str, tmp_path: Path) -> None:
    make_gemma_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / file
    path.write_text(path.read_text()[:200])
    with pytest.raises(SourceError) as refused:
        load_tokenizer(tmp_path, "tokenizer")
    assert "\n" not in str(refused.value)
