"""Captions of emoji: their Unicode names, and what else a person may write who means the same picture.

Keywords come from emoji-test.txt (subgroup and group) and from `everyday.json`, a short list of everyday words written
by hand for this project ("automobile": "car"). A caption is a function of the random stream that it is given.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models.ldm.emoji import Emoji
from models.ldm.text_to_image.recolour import COLOURS

EVERYDAY = Path(__file__).parent / "everyday.json"
COLOUR_WORDS = frozenset({*COLOURS, "gray", "white", "light", "dark"})
FRAMES = ("a {}", "the {}", "{} emoji", "a picture of a {}", "an emoji of a {}", "an icon of a {}", "one {}")


@dataclass(frozen=True)
class Caption:
    """What is known of one picture in words."""

    name: str
    subgroup: str
    group: str
    others: tuple[str, ...] = ()  # everyday words for the same thing
    colour: str | None = None  # the one colour of the picture, where it has one

    @property
    def uncoloured(self) -> str:
        """The name without its colour words, or the name where nothing else is in it."""
        words = [word for word in self.name.split() if word.lower() not in COLOUR_WORDS]
        return " ".join(words) if words else self.name

    def says_colour(self, text: str) -> bool:
        """Whether a colour word is in `text`."""
        return not COLOUR_WORDS.isdisjoint(re.findall(r"\w+", text.lower()))


@cache
def everyday_words() -> dict[str, tuple[str, ...]]:
    """Names and the everyday words for them."""
    return {name: tuple(words) for name, words in json.loads(EVERYDAY.read_text(encoding="utf-8")).items()}


def caption_from_emoji(emoji: Emoji, colour: str | None) -> Caption:
    """Everything that the files say of one emoji."""
    return Caption(emoji.name, emoji.subgroup, emoji.group, everyday_words().get(emoji.name, ()), colour)


def written(caption: Caption, stream: random.Random, colour: str | None = None) -> str:
    """One caption of the picture, or of the picture recoloured in `colour`; half of the time the plain name."""
    if colour is not None:
        thing = stream.choice(_things(caption, uncoloured=True)) if stream.random() < 0.5 else caption.uncoloured
        text = f"{_spelling(colour, stream)} {thing}"
        return _framed(text, stream) if stream.random() < 0.3 else _cased(text, stream)
    kind = stream.random()
    if kind < 0.5:
        return _cased(caption.name, stream)
    text = stream.choice(_things(caption, uncoloured=False))
    if kind < 0.65 and caption.colour is not None and not caption.says_colour(text):
        return f"{_spelling(caption.colour, stream)} {text.lower()}"
    if kind < 0.75:
        return _framed(text, stream)
    if kind < 0.85:
        return _shuffled(text, stream)
    if kind < 0.93:
        return _with_keywords(caption, text, stream)
    return _cased(text, stream)


def _things(caption: Caption, uncoloured: bool) -> list[str]:
    """Ways to call what the picture shows."""
    if uncoloured:
        return [caption.uncoloured, *(word for word in caption.others if not caption.says_colour(word))]
    plain = re.sub(r"^(flag|keycap): ", r"", caption.name) if caption.name.startswith("flag: ") else caption.name
    return [caption.name, plain, *caption.others, *caption.others]


def _cased(text: str, stream: random.Random) -> str:
    """Mostly lower case, sometimes as people begin a sentence."""
    chance = stream.random()
    if chance < 0.1:
        return text[:1].upper() + text[1:]
    return text if chance < 0.2 else text.lower()


def _framed(text: str, stream: random.Random) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", stream.choice(FRAMES).format(text.lower()))


def _shuffled(text: str, stream: random.Random) -> str:
    """Words in another order, or all but one of them, without punctuation."""
    words = re.findall(r"[\w’'.-]+", text.lower())
    if len(words) > 2 and stream.random() < 0.5:
        words.pop(stream.randrange(len(words)))
    else:
        stream.shuffle(words)
    return " ".join(words) if words else text


def _with_keywords(caption: Caption, text: str, stream: random.Random) -> str:
    """The name with its subgroup or group, or the subgroup alone."""
    keywords = caption.subgroup.replace("-", " ")
    chance = stream.random()
    if chance < 0.4:
        return f"{text.lower()}, {keywords}"
    return keywords if chance < 0.7 else f"{text.lower()}, {caption.group.lower()}"


def _spelling(colour: str, stream: random.Random) -> str:
    return "gray" if colour == "grey" and stream.random() < 0.4 else colour
