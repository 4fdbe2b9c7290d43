"""What the guidance branches are conditioned on: labels as numbers, prompts as token ids.

Branch 0 is what is asked for, branch 1 (with classifier-free guidance) what is not: the null label, the
negative prompt, or nothing at all. Equal texts are encoded once, whatever branch and picture they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentc.request import Request
from latentc.schema import LabelConditioning, TextConditioning, TextEncoder
from latentc.text import Tokenizers, cut_warning, encode_texts

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextBatch:
    """Texts that one run of a text encoder's graph encodes.

    Row i of the result belongs to each (branch, image) of places[i]; what no place names stays zero.
    """

    graph: str
    input_ids: Ids  # [texts, tokens]
    attention_mask: Ids  # [texts, tokens]: 1 for a token, 0 for padding
    places: tuple[tuple[tuple[int, int], ...], ...]
    notices: tuple[str, ...] = ()  # what was cut off, a line each


@dataclass(frozen=True)
class Branch:
    """The texts of one guidance branch, one for each picture."""

    texts: tuple[str, ...]
    negative: bool


def labels_of(conditioning: LabelConditioning, request: Request, branches: int) -> Ids:
    """int64 [branches, B]."""
    rows = [list(request.labels), [conditioning.null_label] * len(request.labels)]
    return np.array(rows[:branches], np.int64)


def branches_of(conditioning: TextConditioning, request: Request, branches: int) -> tuple[Branch | None, ...]:
    """The texts of each branch; None is a branch of zeros."""
    asked = Branch(request.prompts, negative=False)
    if branches == 1:
        return (asked,)
    if request.negative_prompts is None:
        unasked = None if conditioning.zero_null else Branch(("",) * request.count, negative=True)
    else:
        unasked = Branch(request.negative_prompts, negative=True)
    return (asked, unasked)


def texts_of(
    conditioning: TextConditioning, branches: Sequence[Branch | None], tokenizers: Tokenizers
) -> tuple[TextBatch, ...]:
    """What each text encoder is to encode, texts of the same length together."""
    return tuple(batch for encoder in conditioning.encoders for batch in _batches(encoder, branches, tokenizers))


def _batches(encoder: TextEncoder, branches: Sequence[Branch | None], tokenizers: Tokenizers) -> list[TextBatch]:
    # Where prompt and negative prompt follow one rule, equal texts of both branches are encoded once.
    groups: dict[bool, dict[str, list[tuple[int, int]]]] = {}
    for branch_index, branch in enumerate(branches):
        if branch is None:
            continue
        negative = branch.negative and encoder.negative != encoder.prompt
        for image, text in enumerate(branch.texts):
            groups.setdefault(negative, {}).setdefault(text, []).append((branch_index, image))
    batches = []
    tokenizer, file = tokenizers[encoder.tokenizer], encoder.tokenizer
    for negative, places in groups.items():
        rule = encoder.negative if negative else encoder.prompt
        names = [_name(branches, *where[0]) for where in places.values()]
        tokens = encode_texts(tokenizer, list(places), rule, encoder.pad_id, file, names)
        batches.append(
            TextBatch(
                graph=encoder.graph,
                input_ids=tokens.ids,
                attention_mask=tokens.mask,
                places=tuple(tuple(where) for where in places.values()),
                notices=tuple(cut_warning(cut, encoder.graph, names[cut.text]) for cut in tokens.cuts),
            )
        )
    return batches


def _name(branches: Sequence[Branch | None], branch_index: int, image: int) -> str:
    """What the user calls a text: with its number, where the branch has several different ones."""
    branch = branches[branch_index]
    assert branch is not None, "a branch of zeros has no texts"
    what = "negative prompt" if branch.negative else "prompt"
    different = list(dict.fromkeys(branch.texts))
    return f"{what} {different.index(branch.texts[image]) + 1}" if len(different) > 1 else what
