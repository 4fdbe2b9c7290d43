"""Padding is inert by construction, and one token may stand for all of it."""

import math

import pytest
import torch
from diffusers import FluxPipeline
from torch.nn import functional

from models.ldm.augment import generator_at
from models.ldm.text_to_image.attention import RepeatedTokenAttention
from models.ldm.text_to_image.flow import Batch, Words, positions, text_states, velocity
from models.ldm.text_to_image.networks import CLOSED, T5_WINDOW, Networks, closed_buckets
from tests.models.ldm.text_to_image import tiny

PROMPTS = ["red heart", "", "a blue car"]


def t5_ids(length: int) -> torch.Tensor:
    tokenizer = tiny.tokenizers()[1]
    return tokenizer(PROMPTS, padding="max_length", max_length=length, return_tensors="pt").input_ids


@torch.no_grad()
def test_padding_is_zero_and_changes_no_other_token():
    t5 = tiny.networks().t5
    short, long = t5(t5_ids(16 + T5_WINDOW))[0], t5(t5_ids(512))[0]
    for row, ids in enumerate(t5_ids(512)):
        words = int((ids != 0).sum())
        assert torch.equal(long[row, words:], torch.zeros_like(long[row, words:]))
        assert torch.allclose(short[row, :words], long[row, :words], atol=1e-6)


def test_words_after_a_token_change_it_and_words_before_do_not():
    t5 = tiny.networks().t5
    ids = t5_ids(32)[2:]
    changed = ids.clone()
    changed[0, 2] = 5 if ids[0, 2] != 5 else 6
    with torch.no_grad():
        before, after = t5(ids)[0], t5(changed)[0]
    assert torch.equal(before[0, 3:], after[0, 3:])
    for position in range(3):
        assert not torch.equal(before[0, position], after[0, position])


@torch.no_grad()
def test_pooled_prompt_does_not_depend_on_padding():
    clip, tokenizer = tiny.networks().clip, tiny.tokenizers()[0]
    short = clip(tokenizer(["red heart"], return_tensors="pt").input_ids).pooler_output
    long = clip(tokenizer(["red heart"], padding="max_length", return_tensors="pt").input_ids).pooler_output
    assert torch.allclose(short, long, atol=1e-6)


def test_training_keeps_padding_inert():
    t5 = tiny.networks().train(True).t5
    optimiser = torch.optim.AdamW(t5.parameters(), 0.1, weight_decay=0.0)
    for _ in range(3):
        t5(t5_ids(32))[0].square().sum().backward()
        optimiser.step()
    assert not t5.shared.weight[0].any()
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert (bias[closed_buckets()] == CLOSED).all()
    assert (bias[0] != CLOSED).all()


def pipeline_velocity(networks: Networks, batch: Batch, length: int) -> torch.Tensor:
    """What FluxPipeline computes with its own attention, the padding written out."""
    text_ids, image_ids = positions(length, batch.noisy.shape[1])
    return networks.transformer(
        hidden_states=batch.noisy,
        encoder_hidden_states=networks.t5(t5_ids(length))[0],
        pooled_projections=networks.clip(batch.words.clip_ids).pooler_output,
        timestep=batch.times,
        guidance=torch.tensor([1.0, 2.0, 3.5]),
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("length", [32, 512])
@torch.no_grad()
def test_one_token_stands_for_all_padding(length: int):
    networks, kept = tiny.networks(), 14
    generator = generator_at(0, 3)
    noisy = torch.randn(3, 16, 16, generator=generator)
    repeats = functional.pad(torch.tensor([math.log(length - kept + 1)]), (kept - 1, 16)).expand(3, 1, 1, -1)
    clip_ids = tiny.tokenizers()[0](PROMPTS, padding="max_length", return_tensors="pt").input_ids
    words = Words(clip_ids, t5_ids(kept + T5_WINDOW), repeats)
    batch = Batch(noisy, torch.tensor([0.1, 0.5, 1.0]), noisy, words)
    wanted = pipeline_velocity(networks, batch, length)
    networks.transformer.set_attn_processor(RepeatedTokenAttention())
    found = velocity(networks.transformer, batch, *text_states(networks, words), torch.tensor([1.0, 2.0, 3.5]))
    assert wanted.std() > 0.1
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    # Negative control: how often the padding is there does matter.
    once = Batch(noisy, batch.times, noisy, Words(clip_ids, words.t5_ids, torch.zeros_like(repeats)))
    other = velocity(networks.transformer, once, *text_states(networks, words), torch.tensor([1.0, 2.0, 3.5]))
    assert (other - wanted).norm() / wanted.norm() > 1e-3


def test_positions_are_those_of_the_pipeline():
    text, image = positions(5, 16)
    wanted = FluxPipeline._prepare_latent_image_ids(1, 4, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(image, wanted)
    assert text.shape == (5, 3)
    assert not text.any()
