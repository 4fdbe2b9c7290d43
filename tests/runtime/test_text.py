"""From prompts to ids, without transformers: rules, what is cut and what is told of it, errors."""

import subprocess
import sys

import numpy as np
import pytest
from latentc.errors import BackendError, BundleError, RequestError
from latentc.schema import TextRule
from latentc.text import Cut, cut_warning, encode_texts, tokenizer_from_json
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

PAD, START, END, UNKNOWN = 0, 1, 2, 3
WORDS = {"[PAD]": PAD, "[START]": START, "[END]": END, "[?]": UNKNOWN, "red": 4, "cat": 5, "dog": 6, "draw": 7}


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A word for an id, with a token at both ends; the file also has a truncation, which is not the bundle's."""
    made = Tokenizer(models.WordLevel(WORDS, unk_token="[?]"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]", special_tokens=[("[START]", START), ("[END]", END)]
    )
    made.enable_truncation(3)
    made.enable_padding(length=9)
    return tokenizer_from_json(memoryview(made.to_str().encode()), "tokenizers/text_encoder.json")


def test_ids_and_mask(tokenizer: Tokenizer) -> None:
    encoded = encode_texts(tokenizer, ["red cat", "", "cat"], TextRule(length=5), PAD)
    assert encoded.ids.tolist() == [[1, 4, 5, 2, 0], [1, 2, 0, 0, 0], [1, 5, 2, 0, 0]]
    assert encoded.mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert encoded.ids.dtype == encoded.mask.dtype == np.int64
    assert encoded.cuts == ()


def test_padding_may_be_another_token(tokenizer: Tokenizer) -> None:
    encoded = encode_texts(tokenizer, ["cat"], TextRule(length=5), END)
    assert encoded.ids.tolist() == [[1, 5, 2, 2, 2]]
    assert encoded.mask.tolist() == [[1, 1, 1, 0, 0]]


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert encode_texts(tokenizer, [], TextRule(length=5), PAD).ids.shape == (0, 5)


def test_rules(tokenizer: Tokenizer) -> None:
    rule = TextRule(length=6, prefix="draw ", lower_strip=True)
    assert encode_texts(tokenizer, ["  RED Cat\n"], rule, PAD).ids.tolist() == [[1, 7, 4, 5, 2, 0]]
    assert encode_texts(tokenizer, ["RED"], TextRule(length=3), PAD).ids.tolist() == [[1, UNKNOWN, 2]]


def test_what_is_cut_is_told(tokenizer: Tokenizer) -> None:
    encoded = encode_texts(tokenizer, ["red cat", "red cat dog  dog 漢字", "cat"], TextRule(length=5), PAD)
    assert encoded.ids[1].tolist() == [1, 4, 5, 6, 2]  # the closing token stays
    assert encoded.mask[1].tolist() == [1] * 5
    assert encoded.cuts == (Cut(text=1, num_tokens=7, length=5, left_out="dog 漢字"),)
    warning = cut_warning(encoded.cuts[0], "text_encoder")
    assert warning == "prompt is cut: 7 tokens, text_encoder takes 5; left out: 'dog 漢字'"


def test_exactly_the_length_is_not_cut(tokenizer: Tokenizer) -> None:
    assert encode_texts(tokenizer, ["red cat dog"], TextRule(length=5), PAD).cuts == ()


def test_one_cut_does_not_cut_the_next(tokenizer: Tokenizer) -> None:
    first = encode_texts(tokenizer, ["red " * 9, "red " * 4], TextRule(length=5), PAD)
    again = encode_texts(tokenizer, ["red " * 4], TextRule(length=9), PAD)
    assert [cut.num_tokens for cut in first.cuts] == [11, 6]
    assert again.ids.tolist() == [[1, 4, 4, 4, 4, 2, 0, 0, 0]]


def test_an_instruction_is_not_counted(tokenizer: Tokenizer) -> None:
    rule = TextRule(length=7, prefix="draw draw ")
    (cut,) = encode_texts(tokenizer, ["red cat dog dog cat"], rule, PAD).cuts
    # 9 tokens, of which 4 are the instruction with both ends; 3 of the prompt are kept.
    assert cut == Cut(text=0, num_tokens=5, length=3, left_out="dog cat")


def test_a_long_rest_is_shown_in_part(tokenizer: Tokenizer) -> None:
    (cut,) = encode_texts(tokenizer, ["red\n" * 500], TextRule(length=5), PAD).cuts
    warning = cut_warning(cut, "text_encoder_2", "negative prompt")
    assert warning.startswith("negative prompt is cut: 502 tokens, text_encoder_2 takes 5; left out: 'red\\nred")
    assert warning.endswith("and 1788 characters more")
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("red \ud83d cat", r"lone surrogate \('\\ud83d'\) at character 5"),
        ("red\0cat", "NUL at character 4"),
    ],
)
def test_text_that_is_none(tokenizer: Tokenizer, text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        encode_texts(tokenizer, ["cat", text], TextRule(length=5), PAD)
    str(refused.value).encode("utf-8")  # it can be printed
    assert "\n" not in str(refused.value)


def test_a_damaged_tokenizer_is_one_line() -> None:
    """[UNK] is named, and not in the vocabulary: tokenizers finds out when it needs it."""
    made = Tokenizer(models.WordLevel({"red": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    read = tokenizer_from_json(made.to_str().encode(), "tokenizers/a.json")
    assert encode_texts(read, ["red"], TextRule(length=2), 0, "tokenizers/a.json").ids.tolist() == [[0, 0]]
    with pytest.raises(BundleError, match=r"^tokenizers/a\.json: does not encode the prompt: .*; export again$"):
        encode_texts(read, ["red cat"], TextRule(length=2), 0, "tokenizers/a.json")


@pytest.mark.parametrize("text", ["", "red", "red cat"])
def test_a_length_below_the_special_tokens_is_one_line(tokenizer: Tokenizer, text: str) -> None:
    line = r"^a\.json: adds 2 tokens to every prompt where its encoder takes 1 in all$"
    with pytest.raises(BundleError, match=line):
        encode_texts(tokenizer, [text], TextRule(length=1), PAD, "a.json")
    kept = encode_texts(tokenizer, ["red cat"], TextRule(length=2), PAD)  # only the special ones fit
    assert (kept.ids.tolist(), kept.cuts) == ([[1, 2]], (Cut(0, 4, 2, "red cat"),))
    assert encode_texts(tokenizer, ["red cat"], TextRule(length=4), PAD).cuts == ()  # nothing is left switched on


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "9.0"}'])
def test_a_file_that_is_no_tokenizer(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizers/a\.json: not read by the installed tokenizers") as refused:
        tokenizer_from_json(content, "tokenizers/a.json")
    assert "\n" not in str(refused.value)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendError, match=r'prompts need the package tokenizers .*: pip install "latentc\[text\]"$'):
        tokenizer_from_json(b"{}", "tokenizers/a.json")


def test_the_package_is_imported_only_where_it_is_used() -> None:
    code = "import sys, latentc.text; assert not {'tokenizers', 'huggingface_hub', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokenizers_needs_nothing_else(tokenizer: Tokenizer) -> None:
    """Its dependency huggingface_hub is for downloads: `pip install --no-deps tokenizers` is enough."""
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from latentc.text import tokenizer_from_json\n"
        "print(tokenizer_from_json(sys.stdin.buffer.read(), 'a').encode('red').ids)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=tokenizer.to_str().encode(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "[1, 4, 2]"
