"""Branches, places and rules of prompts: what each text encoder is given, and where its result belongs."""

import numpy as np
import pytest
from latentc import text
from latentc.conditioning import branches_of, texts_of
from latentc.errors import RequestError
from latentc.request import Request
from latentc.schema import Table, TextConditioning, TextEncoder, TextRule
from latentc.text import Tokenizers

tokenizers = pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
TABLE = Table(solver="any", steps=1, calls=1, noise_draws=0, file="")
WORDS = {"<pad>": 0, "</s>": 1, "a": 2, "red": 3, "apple": 4, "draw": 5, "blurry": 6, "[UNK]": 7}


def tokenizer() -> memoryview:
    """Whole words, closed by </s>."""
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return memoryview(built.to_str().encode())


def opened() -> Tokenizers:
    return Tokenizers({"tokenizers/t.json": tokenizer()})


def conditioning(negative: TextRule | None = None, zero_null: bool = False) -> TextConditioning:
    rule = TextRule(length=5)
    encoder = TextEncoder(
        graph="text_encoder", tokenizer="tokenizers/t.json", pad_id=0, prompt=rule, negative=negative or rule
    )
    return TextConditioning(encoders=(encoder,), zero_null=zero_null)


def request(*prompts: str, negative: tuple[str, ...] | None = None) -> Request:
    return Request(table=TABLE, cfg_scale=2.0, width=8, height=8, prompts=prompts, negative_prompts=negative)


def test_equal_texts_are_encoded_once_whatever_branch_they_belong_to() -> None:
    asked = request("a red apple", "", "a red apple")
    held = conditioning()
    (batch,) = texts_of(held, branches_of(held, asked, 2), opened())
    np.testing.assert_array_equal(batch.input_ids, [[2, 3, 4, 1, 0], [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.attention_mask, [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    assert batch.places == (((0, 0), (0, 2)), ((0, 1), (1, 0), (1, 1), (1, 2)))
    assert batch.notices == ()


def test_without_guidance_nothing_negative_is_encoded() -> None:
    held = conditioning()
    (batch,) = texts_of(held, branches_of(held, request("a", negative=("blurry",)), 1), opened())
    np.testing.assert_array_equal(batch.input_ids, [[2, 1, 0, 0, 0]])


def test_zeros_stand_for_no_negative_prompt_but_not_for_an_empty_one() -> None:
    held = conditioning(zero_null=True)
    assert branches_of(held, request("a"), 2)[1] is None
    empty = branches_of(held, request("a", negative=("",)), 2)[1]
    assert empty is not None
    assert empty.texts == ("",)


def test_a_rule_of_its_own_for_negative_prompts_makes_a_batch_of_its_own() -> None:
    held = conditioning(negative=TextRule(length=3))
    encoder = held.encoders[0]
    with_prefix = TextEncoder(
        graph=encoder.graph, tokenizer=encoder.tokenizer, pad_id=0, prompt=TextRule(length=6, prefix="draw "),
        negative=encoder.negative,
    )  # fmt: skip
    held = TextConditioning(encoders=(with_prefix,), zero_null=False)
    positive, negative = texts_of(held, branches_of(held, request("apple", negative=("apple",)), 2), opened())
    np.testing.assert_array_equal(positive.input_ids, [[5, 4, 1, 0, 0, 0]])
    np.testing.assert_array_equal(negative.input_ids, [[4, 1, 0]])
    assert (positive.places, negative.places) == ((((0, 0),),), (((1, 0),),))


def test_what_is_cut_off_is_said() -> None:
    held = conditioning()
    (batch,) = texts_of(held, branches_of(held, request("a red apple a blurry apple"), 1), opened())
    np.testing.assert_array_equal(batch.input_ids, [[2, 3, 4, 2, 1]])
    assert len(batch.notices) == 1
    assert "7 tokens, text_encoder takes 5; left out: 'blurry apple'" in batch.notices[0]
    assert batch.notices[0].startswith("prompt is cut: ")


def test_of_several_prompts_it_is_said_which_is_cut() -> None:
    held, long = conditioning(), "a red apple a blurry apple"
    asked = request("a", "a", long, long, negative=("red", f"{long} a", f"{long} a", "red"))
    (batch,) = texts_of(held, branches_of(held, asked, 2), opened())
    assert [notice.partition(" is cut")[0] for notice in batch.notices] == ["prompt 2", "negative prompt 2"]
    asked = request("a", "red", negative=(long, long))
    (batch,) = texts_of(held, branches_of(held, asked, 2), opened())
    assert [notice.partition(" is cut")[0] for notice in batch.notices] == ["negative prompt"]


@pytest.mark.parametrize(
    ("prompts", "negative", "line"),
    [
        (("a\0",), None, "the prompt has a NUL at character 2"),
        (("a", "red", "\udcff"), None, r"prompt 3 is not Unicode text: a lone surrogate"),
        (("a",), ("\0",), "the negative prompt has a NUL at character 1"),
        (("a", "red"), ("a", "\0"), "negative prompt 2 has a NUL at character 1"),
    ],
)
def test_of_several_prompts_it_is_said_which_is_no_text(
    prompts: tuple[str, ...], negative: tuple[str, ...] | None, line: str
) -> None:
    held = conditioning()
    with pytest.raises(RequestError, match=f"^{line}"):
        texts_of(held, branches_of(held, request(*prompts, negative=negative), 2), opened())


def test_a_tokenizer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held, kept = conditioning(), opened()
    asked = branches_of(held, request("a red apple a blurry apple"), 2)
    first = texts_of(held, asked, kept)
    monkeypatch.setattr(text, "tokenizer_from_json", None)
    again = texts_of(held, asked, kept)
    np.testing.assert_array_equal(first[0].input_ids, again[0].input_ids)
    assert first[0].notices == again[0].notices
