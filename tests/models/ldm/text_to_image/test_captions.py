"""Captions say what the picture shows; a recoloured picture never keeps the old colour word."""

import random

import pytest

from models.ldm.emoji import LIST_PATH, emoji_from_list
from models.ldm.text_to_image.captions import Caption, caption_from_emoji, everyday_words, written
from models.ldm.text_to_image.dataset import recombined_prompts
from tests.models.ldm.text_to_image import tiny

HEART, CAR = tiny.CAPTIONS[:2]
needs_list = pytest.mark.skipif(not LIST_PATH.is_file(), reason="needs the Debian package unicode-data")


def test_half_of_the_captions_are_the_name():
    stream = random.Random(0)
    captions = [written(HEART, stream).lower() for _ in range(1_000)]
    assert 0.45 < captions.count("red heart") / 1_000 < 0.8
    assert {"a red heart", "love", "heart red", "red heart, heart"} <= set(captions)


def test_plain_things_are_also_named_with_their_colour():
    stream = random.Random(0)
    captions = {written(CAR, stream) for _ in range(1_000)}
    assert {"red automobile", "red car", "car"} <= captions


def test_recoloured_captions_name_the_new_colour_only():
    stream = random.Random(0)
    for _ in range(300):
        words = written(HEART, stream, "blue").lower()
        assert "blue" in words
        assert "red" not in words.split()
        assert "heart" in words or "love" in words


def test_a_name_of_colour_words_alone_stays():
    assert Caption("orange", "food-fruit", "Food & Drink").uncoloured == "orange"


@needs_list
def test_everyday_words_belong_to_names_of_the_list():
    assert set(everyday_words()) <= {emoji.name for emoji in emoji_from_list()}


@needs_list
def test_recombined_prompts_are_a_hundred_that_are_no_names():
    prompts = recombined_prompts()
    assert len(set(prompts)) == len(prompts) == 100
    assert set(prompts).isdisjoint(emoji.name for emoji in emoji_from_list())
    things = {word for emoji in emoji_from_list() for word in (emoji.name, *everyday_words().get(emoji.name, ()))}
    uncoloured = {caption_from_emoji(emoji, None).uncoloured for emoji in emoji_from_list()}
    assert {prompt.split(" ", 1)[1] for prompt in prompts} <= things | uncoloured
