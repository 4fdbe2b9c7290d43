"""One batch of training, a pure function of (seed, step): noisy tokens, words, and the velocity to predict.

B batch · L text tokens · K image tokens · C latent channels · s latent side
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import FluxPipeline
from transformers import CLIPTokenizer, T5Tokenizer

from models.ldm.text_to_image.captions import written
from models.ldm.text_to_image.config import SEQUENCE_LENGTH, DataConfig
from models.ldm.text_to_image.dataset import EmojiLatents
from models.ldm.text_to_image.networks import T5_WINDOW, Networks


@dataclass(frozen=True)
class Words:
    """Tokenised captions, and for how many tokens the last one stands."""

    clip_ids: torch.Tensor  # (B, clip length) int64
    t5_ids: torch.Tensor  # (B, L + window) int64: what is beyond L is padding that T5 sees and the transformer does not
    repeats: torch.Tensor  # (B, 1, 1, L + K) float32: logarithm of how often each token is there


@dataclass(frozen=True)
class Batch:
    """What the transformer is given and what it should say."""

    noisy: torch.Tensor  # (B, K, 4 C) float32
    times: torch.Tensor  # (B,) float32 in 0..1: the share of noise
    target: torch.Tensor  # (B, K, 4 C) float32: noise - clean
    words: Words


def batch_at(
    data: EmojiLatents,
    tokenizers: tuple[CLIPTokenizer, T5Tokenizer],
    config: DataConfig,
    batch: int,
    generator: torch.Generator,
) -> Batch:
    """Draw emoji, a version and a caption of each, and a time from the logit-normal distribution."""
    chosen = torch.multinomial(data.weights, batch, replacement=True, generator=generator).tolist()
    stream = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    rows, captions = [], []
    for index in chosen:
        colours = data.colours[index]
        if colours and stream.random() < config.recoloured:
            number = stream.randrange(len(colours))
            rows.append(int(data.recoloured[index]) + number)
            captions.append(written(data.captions[index], stream, colours[number]))
        else:
            rows.append(int(data.plain[index, stream.randrange(2)]))
            captions.append(written(data.captions[index], stream))
    captions = ["" if stream.random() < config.caption_dropout else caption for caption in captions]
    clean = packed(data.values[rows])
    noise = torch.randn(clean.shape, generator=generator)
    times = torch.randn(batch, generator=generator).sigmoid()
    share = times[:, None, None]
    words = words_from_captions(captions, tokenizers, config.text_tokens, clean.shape[1], stream)
    return Batch((1.0 - share) * clean + share * noise, times, noise - clean, words)


def packed(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, s, s) -> (B, s/2 * s/2, 4 C), in the order of FluxPipeline."""
    count, channels, height, width = latents.shape
    tokens: torch.Tensor = FluxPipeline._pack_latents(latents, count, channels, height, width)
    return tokens


def words_from_captions(
    captions: list[str],
    tokenizers: tuple[CLIPTokenizer, T5Tokenizer],
    text_tokens: int,
    image_tokens: int,
    stream: random.Random,
) -> Words:
    """Tokens, and a length to which the pipeline would have padded: its default half of the time."""
    clip_tokenizer, t5_tokenizer = tokenizers
    clip = clip_tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    t5 = t5_tokenizer(captions, padding="max_length", truncation=True, max_length=text_tokens, return_tensors="pt")
    padding = torch.full((len(captions), 1 + T5_WINDOW), t5_tokenizer.pad_token_id)
    repeats = torch.zeros(len(captions), 1, 1, text_tokens + 1 + image_tokens)
    for row in range(len(captions)):
        length = float(SEQUENCE_LENGTH)
        if stream.random() < 0.5:
            length = math.exp(stream.uniform(math.log(text_tokens + T5_WINDOW), math.log(SEQUENCE_LENGTH)))
        repeats[row, 0, 0, text_tokens] = math.log(length - text_tokens)
    return Words(clip.input_ids, torch.cat([t5.input_ids, padding], dim=1), repeats)


def text_states(networks: Networks, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
    """The T5 states that the transformer is given, (B, L, width), and the pooled CLIP state, (B, width)."""
    length = words.t5_ids.shape[1] - T5_WINDOW
    with torch.autocast("cpu", enabled=False):  # the encoders are too small to gain by it
        states = networks.t5(words.t5_ids)[0][:, :length]
        pooled = networks.clip(words.clip_ids).pooler_output
    return states, pooled


def positions(text_tokens: int, image_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """FLUX's ids: zeros for text (L, 3); (0, row, column) for the tokens of a square picture (K, 3)."""
    side = math.isqrt(image_tokens)
    image: torch.Tensor = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    return torch.zeros(text_tokens, 3), image


def velocity(
    transformer: Callable[..., tuple[torch.Tensor]],
    batch: Batch,
    states: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """What the transformer says of a batch, (B, K, 4 C) float32.

    states (B, L, width); pooled (B, width); guidance (B,).
    """
    text_ids, image_ids = positions(states.shape[1], batch.noisy.shape[1])
    predicted = transformer(
        hidden_states=batch.noisy,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=batch.times,
        img_ids=image_ids,
        txt_ids=text_ids,
        guidance=guidance,
        joint_attention_kwargs={"attention_mask": batch.words.repeats},
        return_dict=False,
    )[0]
    return predicted.float()
