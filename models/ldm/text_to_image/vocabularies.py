"""The two tokenizers, trained on the captions: byte-level BPE as CLIP has it, and a unigram model as T5 has it."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from models.ldm.text_to_image.captions import Caption, written
from models.ldm.text_to_image.config import T5_TOKENS, NetworkConfig
from models.ldm.text_to_image.recolour import COLOURS

START, END = "<|startoftext|>", "<|endoftext|>"


def corpus_from_captions(captions: Sequence[Caption], rounds: int = 6) -> list[str]:
    """What the vocabularies are counted on: every name, and drawn captions, some of them with a colour."""
    stream = random.Random(0)
    lines = [caption.name.lower() for caption in captions for _ in range(4)]
    for _ in range(rounds):
        lines += [written(caption, stream) for caption in captions]
        lines += [written(caption, stream, stream.choice([*COLOURS])) for caption in captions[::8]]
    return lines


def kept_tokenizers(
    config: NetworkConfig, captions: Sequence[Caption], folder: Path
) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """The tokenizers in `folder`, trained and put there by the first run.

    A run that goes on must have the very same: the unigram trainer orders pieces of equal score as it likes
    (tokenizers 0.23), and every id would name another piece.
    """
    paths = folder / "tokenizer", folder / "tokenizer_2"
    if not all((path / "tokenizer.json").is_file() for path in paths):
        corpus = corpus_from_captions(captions)
        clip_tokenizer(config, corpus).save_pretrained(paths[0])
        t5_tokenizer(config, corpus).save_pretrained(paths[1])
    return CLIPTokenizer.from_pretrained(paths[0]), T5Tokenizer.from_pretrained(paths[1])


def clip_tokenizer(config: NetworkConfig, corpus: Sequence[str]) -> CLIPTokenizer:
    """Lower-casing BPE over bytes: nothing is unknown to it. Cuts at `clip_length`."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    frame = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])._tokenizer
    counted = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    counted.normalizer, counted.pre_tokenizer = frame.normalizer, frame.pre_tokenizer
    specials = [START, END, *sorted(alphabet), *(f"{letter}</w>" for letter in sorted(alphabet))]
    trainer = trainers.BpeTrainer(
        vocab_size=config.clip_vocabulary,
        special_tokens=specials,  # so that their order, and with it every id, is a function of the corpus alone
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    counted.train_from_iterator(corpus, trainer)
    model = json_of(counted)["model"]
    vocabulary = {str(token): int(number) for token, number in model["vocab"].items()}
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=END, model_max_length=config.clip_length)


def t5_tokenizer(config: NetworkConfig, corpus: Sequence[str]) -> T5Tokenizer:
    """Unigram over words that begin with a mark; no sentinel tokens, since nothing is masked here."""
    specials = ["<pad>", "</s>", "<unk>"]
    frame = T5Tokenizer(vocab=[(token, 0.0) for token in specials], extra_ids=0)._tokenizer
    counted = Tokenizer(models.Unigram())
    counted.pre_tokenizer = frame.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=config.t5_vocabulary,
        special_tokens=specials,
        initial_alphabet=[*string.ascii_letters],
        unk_token="<unk>",
        show_progress=False,
    )
    # Capitals are spelt letter by letter: as words they would take a third of the vocabulary from the small ones.
    counted.train_from_iterator([line.lower() for line in corpus], trainer)
    pieces = [(str(piece), float(score)) for piece, score in json_of(counted)["model"]["vocab"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)


def json_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer as the data of its file: the only way to read its merges and scores."""
    return cast(dict[str, Any], json.loads(tokenizer.to_str()))
