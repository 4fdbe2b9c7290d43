"""From prompts to token ids, with the tokenizer of the bundle.

The ids are those that transformers gives a pipeline for padding="max_length", truncation=True: special tokens around
the text, cut at the right so that the closing ones stay, padded at the right. What was cut is told, never hidden.

`tokenizers` is in the optional extra `text` and is imported where it is first needed: a bundle with class labels
does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentc.errors import BackendError, BundleError, RequestError
from latentc.schema import TextRule

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_SHOWN = 200  # characters of what was left out


@dataclass(frozen=True)
class Cut:
    """A prompt that was longer than its encoder takes. Numbers are of the prompt alone, without an instruction."""

    text: int  # which of the texts
    num_tokens: int  # with the special tokens around it
    length: int  # tokens that the encoder takes
    left_out: str


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as an encoder's graph takes them: one row each, padded to the rule's length."""

    ids: NDArray[np.int64]  # [texts, length]
    mask: NDArray[np.int64]  # [texts, length]: 1 for a token, 0 for padding
    cuts: tuple[Cut, ...]  # one for each text that did not fit


def tokenizer_from_json(content: bytes | memoryview, file: str) -> Tokenizer:
    """A file of the `tokenizers` format, already checked against its hash; `file` is named if it cannot be read.

    Raises BackendError if the package is not installed, BundleError if it does not read the file.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendError(
            f'prompts need the package tokenizers ({error}): pip install "latentc[text]"'.replace("\n", " ")
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(bytes(content))
    except Exception as error:  # its parser raises several, with no base class of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"{file}: not read by the installed tokenizers: {reason}; update it, or export again"
        ) from error
    # Both are this module's.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], rule: TextRule, pad_id: int) -> EncodedTexts:
    """Ids and mask of `texts` by `rule`; raises RequestError for a text that is not Unicode."""
    ids = np.full((len(texts), rule.length), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), rule.length), dtype=np.int64)
    cuts = []
    for row, text in enumerate(texts):
        _check_unicode(text)
        whole = rule.prefix + (text.lower().strip() if rule.lower_strip else text)
        encoding = tokenizer.encode(whole)
        if len(encoding.ids) > rule.length:
            kept_content = rule.length - tokenizer.num_special_tokens_to_add(False)
            content = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
            begin = encoding.offsets[content[kept_content]][0]
            prefix = len(tokenizer.encode(rule.prefix).ids) if rule.prefix else 0
            num_tokens, length = len(encoding.ids) - prefix, rule.length - prefix
            cuts.append(Cut(row, num_tokens, length, whole[max(begin, len(rule.prefix)) :]))
            tokenizer.enable_truncation(rule.length)
            encoding = tokenizer.encode(whole)
            tokenizer.no_truncation()
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    return EncodedTexts(ids, mask, tuple(cuts))


def cut_warning(cut: Cut, encoder: str, what: str = "prompt") -> str:
    """One line: how much was cut for which encoder, and the text that was left out."""
    shown = cut.left_out[:_MAX_SHOWN]
    more = f" and {len(cut.left_out) - len(shown)} characters more" if len(shown) < len(cut.left_out) else ""
    return f"{what} is cut: {cut.num_tokens} tokens, {encoder} takes {cut.length}; left out: {shown!r}{more}"


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt is not Unicode text: a lone surrogate ({text[error.start]!a}) at character {error.start + 1}; "
            f"give the prompt in UTF-8"
        ) from error
    if "\0" in text:
        raise RequestError(f"the prompt has a NUL at character {text.index(chr(0)) + 1}; take it out")
