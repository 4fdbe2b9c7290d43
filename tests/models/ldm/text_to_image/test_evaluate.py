"""The judge, what it is asked, and the figures' part of the card."""

from pathlib import Path

import pytest
import torch

from models.ldm.card import END
from models.ldm.classifier import Classifier
from models.ldm.emoji import FONT_PATH, LIST_PATH
from models.ldm.text_to_image.card import BEGIN, write_card
from models.ldm.text_to_image.dataset import DrawnEmoji, drawn_emoji, recolourings, recombined_prompts
from models.ldm.text_to_image.evaluate import emoji_called, in_colour
from models.ldm.text_to_image.judge import Judge, colours_of, pictures_from_emoji, pixels_of

FIGURES = {
    "names": 100,
    "names_accepted": 61,
    "names_accepted_real": 88,
    "names_nearest_to_their_emoji": 52,
    "recombined": 100,
    "recombined_thing": 50,
    "recombined_colour": 80,
    "recombined_accepted": 42,
    "recombined_thing_real": 90,
    "recombined_colour_real": 97,
    "recombined_accepted_real": 87,
}

needs_emoji = pytest.mark.skipif(
    not (FONT_PATH.is_file() and LIST_PATH.is_file()),
    reason="needs the Debian packages fonts-noto-color-emoji and unicode-data",
)


@pytest.fixture(scope="module")
def emoji() -> list[DrawnEmoji]:
    return drawn_emoji(32)


@needs_emoji
def test_every_combination_can_be_painted_and_its_colour_read_but_is_not_shown_in_training(emoji: list[DrawnEmoji]):
    names = frozenset(one.caption.name for one in emoji)
    right = 0
    for prompt in recombined_prompts():
        colour, thing = prompt.split(" ", 1)
        found = emoji_called(thing, emoji)
        assert all(colour not in dict(recolourings(one, names)) for one in found)
        right += colours_of(pixels_of([in_colour(found, colour)])) == [colour]
    assert right >= 90


@needs_emoji
def test_nearest_real_emoji_of_a_real_emoji_is_itself(emoji: list[DrawnEmoji]):
    emoji = emoji[:40]
    classes = tuple(dict.fromkeys(one.caption.subgroup for one in emoji))
    judge = Judge(pictures_from_emoji(emoji, classes), Classifier((4, 4), len(classes), 0.0).eval())
    pixels = pixels_of([one.picture for one in emoji])
    noisy = pixels + 0.1 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    assert judge.nearest(noisy) == [*range(40)]
    assert set(judge.subgroups(pixels)) <= set(classes)


def test_card_is_rewritten_between_its_marks_alone(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_card(card, FIGURES)
    text = card.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 61 | 88 |" in text
    assert "| 42 | 87 |" in text
    card.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="put back"):
        write_card(card, FIGURES)
