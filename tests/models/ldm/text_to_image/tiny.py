"""The smallest text-to-image training that has every part."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from transformers import CLIPTokenizer, T5Tokenizer

from models.ldm.augment import generator_at
from models.ldm.text_to_image.captions import Caption
from models.ldm.text_to_image.config import DISTILLATION, FLOW, DataConfig, NetworkConfig
from models.ldm.text_to_image.dataset import EmojiLatents
from models.ldm.text_to_image.networks import Networks, networks_from_config
from models.ldm.text_to_image.vocabularies import clip_tokenizer, corpus_from_captions, t5_tokenizer

NETWORK = NetworkConfig(
    heads=2,
    head_dim=16,
    rope_axes=(4, 6, 6),
    single_blocks=1,
    text_width=12,
    text_layers=2,
    t5_vocabulary=80,
    t5_feed_forward=16,
    clip_vocabulary=520,
)
FAST = {"steps": 4, "decay_steps": 2, "warmup_steps": 1, "batch": 4, "log_every": 1, "save_every": 1, "grid_every": 4}
FLOW_LOOP = replace(FLOW, **FAST)
DISTILLATION_LOOP = replace(DISTILLATION, **FAST)
DATA = DataConfig(text_tokens=6)
CAPTIONS = (
    Caption("red heart", "heart", "Smileys & Emotion", ("love",), "red"),
    Caption("automobile", "transport-ground", "Travel & Places", ("car",), "red"),
    Caption("flag: Åland Islands", "country-flag", "Flags"),
    Caption("grinning face", "face-smiling", "Smileys & Emotion", (), "yellow"),
)


@cache
def tokenizers() -> tuple[CLIPTokenizer, T5Tokenizer]:
    corpus = corpus_from_captions(CAPTIONS)
    return clip_tokenizer(NETWORK, corpus), t5_tokenizer(NETWORK, corpus)


def latents(side: int = 8) -> EmojiLatents:
    """Four emoji, two of them also in two other colours."""
    return EmojiLatents(
        values=torch.randn(8, 4, side, side, generator=generator_at(0, 0)),
        captions=CAPTIONS,
        plain=torch.tensor([[0, 0], [1, 0], [2, 2], [3, 3]]),
        colours=(("blue", "green"), ("blue", "black"), (), ()),
        recoloured=torch.tensor([4, 6, 8, 8]),
        weights=torch.full((4,), 0.25, dtype=torch.float64),
    )


def networks() -> Networks:
    """Seeded networks whose outputs depend on every input: adaLN-Zero would hide what the text says."""
    torch.manual_seed(0)
    made = networks_from_config(NETWORK, 4, *tokenizers())
    with torch.no_grad():
        for value in made.transformer.parameters():
            if not value.any():
                value.normal_(std=0.1)
    return made.train(False)
