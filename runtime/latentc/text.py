"""From prompts to token ids, with the tokenizer of the bundle.

The ids are those that transformers gives a pipeline for padding="max_length", truncation=True: special tokens around
the text, cut at the right so that the closing ones stay, padded at the right. What was cut is told, never hidden.

`tokenizers` is in the optional extra `text` and is imported where it is first needed: a bundle with class labels
does not need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentc.errors import BackendError, BundleError, RequestError
from latentc.schema import TextRule

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

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


class Tokenizers:
    """The tokenizers of a bundle by file, each opened on first use and kept: parsing one takes up to seconds."""

    def __init__(self, files: Mapping[str, bytes | memoryview]) -> None:
        self._files = files
        self._opened: dict[str, Tokenizer] = {}

    def __getitem__(self, file: str) -> Tokenizer:
        """Raises what `tokenizer_from_json` raises."""
        if file not in self._opened:
            self._opened[file] = tokenizer_from_json(self._files[file], file)
        return self._opened[file]


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    rule: TextRule,
    pad_id: int,
    file: str = "the tokenizer",
    names: Sequence[str] | None = None,
) -> EncodedTexts:
    """Ids and mask of `texts` by `rule`.

    Raises RequestError for a text that is not Unicode, and BundleError where the tokenizer fails or does not fit the
    rule; `names` says what each text is ("negative prompt 2"), `file` which tokenizer it is.
    """
    ids = np.full((len(texts), rule.length), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), rule.length), dtype=np.int64)
    cuts = []
    for row, text in enumerate(texts):
        _check_unicode(text, "prompt" if names is None else names[row])
        whole = rule.prefix + (text.lower().strip() if rule.lower_strip else text)
        encoding = _encoded(tokenizer, whole, file)
        if len(encoding.ids) > rule.length:
            cuts.append(_cut(tokenizer, row, whole, encoding, rule, file))
            tokenizer.enable_truncation(rule.length)
            try:
                encoding = _encoded(tokenizer, whole, file)
            finally:
                tokenizer.no_truncation()
            if len(encoding.ids) > rule.length:
                raise BundleError(f"{file}: cuts to {len(encoding.ids)} tokens where its encoder takes {rule.length}")
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    return EncodedTexts(ids, mask, tuple(cuts))


def _encoded(tokenizer: Tokenizer, text: str, file: str) -> Encoding:
    try:
        return tokenizer.encode(text)
    except Exception as error:  # tokenizers has no base class of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{file}: does not encode the prompt: {reason}; export again") from error


def _cut(tokenizer: Tokenizer, row: int, whole: str, encoding: Encoding, rule: TextRule, file: str) -> Cut:
    """What will be cut off an encoding that is too long."""
    special = tokenizer.num_special_tokens_to_add(False)
    content = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
    kept_content = rule.length - special
    if not 0 <= kept_content < len(content):
        raise BundleError(f"{file}: adds {special} tokens to every prompt where its encoder takes {rule.length} in all")
    begin = encoding.offsets[content[kept_content]][0]
    prefix = len(_encoded(tokenizer, rule.prefix, file).ids) if rule.prefix else 0
    num_tokens, length = len(encoding.ids) - prefix, rule.length - prefix
    return Cut(row, num_tokens, length, whole[max(begin, len(rule.prefix)) :])


def cut_warning(cut: Cut, encoder: str, what: str = "prompt") -> str:
    """One line: how much was cut for which encoder, and the text that was left out."""
    shown = cut.left_out[:_MAX_SHOWN]
    more = f" and {len(cut.left_out) - len(shown)} characters more" if len(shown) < len(cut.left_out) else ""
    return f"{what} is cut: {cut.num_tokens} tokens, {encoder} takes {cut.length}; left out: {shown!r}{more}"


def _check_unicode(text: str, name: str) -> None:
    what = name if name[-1].isdigit() else f"the {name}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{what} is not Unicode text: a lone surrogate ({text[error.start]!a}) at character {error.start + 1}; "
            f"give the prompt in UTF-8"
        ) from error
    if "\0" in text:
        raise RequestError(f"{what} has a NUL at character {text.index(chr(0)) + 1}; take it out")
