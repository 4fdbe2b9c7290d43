"""What the guidance branches are conditioned on: labels as numbers, prompts as token ids.

Branch 0 is what is asked for, branch 1 (with classifier-free guidance) what is not: the null label, the
negative prompt, or nothing at all. Equal texts are encoded once, whatever branch and picture they belong to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentc.request import Request
from latentc.schema import LabelConditioning, TextConditioning, TextEncoder
from latentc.text import cut_warning, encode_texts, tokenizer_from_json

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
    conditioning: TextConditioning, branches: Sequence[Branch | None], tokenizers: Mapping[str, memoryview]
) -> tuple[TextBatch, ...]:
    """What each text encoder is to encode, texts of the same length together."""
    return tuple(
        batch
        for encoder in conditioning.encoders
        for batch in _batches(encoder, branches, tokenizers[encoder.tokenizer])
    )


def _batches(encoder: TextEncoder, branches: Sequence[Branch | None], tokenizer: memoryview) -> list[TextBatch]:
    # Where prompt and negative prompt follow one rule, equal texts of both branches are encoded once.
    groups: dict[bool, dict[str, list[tuple[int, int]]]] = {}
    for branch_index, branch in enumerate(branches):
        if branch is None:
            continue
        negative = branch.negative and encoder.negative != encoder.prompt
        for image, text in enumerate(branch.texts):
            groups.setdefault(negative, {}).setdefault(text, []).append((branch_index, image))
    batches = []
    opened = tokenizer_from_json(tokenizer, encoder.tokenizer)
    for negative, places in groups.items():
        tokens = encode_texts(opened, list(places), encoder.negative if negative else encoder.prompt, encoder.pad_id)
        batches.append(
            TextBatch(
                graph=encoder.graph,
                input_ids=tokens.ids,
                attention_mask=tokens.mask,
                places=tuple(tuple(where) for where in places.values()),
                notices=tuple(cut_warning(cut, encoder.graph) for cut in tokens.cuts),
            )
        )
    return batches
