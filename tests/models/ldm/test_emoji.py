"""The emoji data: what is listed, what is drawn, what is held out."""

from pathlib import Path

import numpy as np
import pytest

from models.ldm.emoji import FONT_PATH, LIST_PATH, DataError, Emoji, EmojiRenderer, emoji_from_list, is_held_out

needs_font = pytest.mark.skipif(not FONT_PATH.is_file(), reason="needs the Debian package fonts-noto-color-emoji")
needs_list = pytest.mark.skipif(not LIST_PATH.is_file(), reason="needs the Debian package unicode-data")

HELD_OUT = ["1F600", "1F602", "1F60F", "1F619", "1F621", "1F63F"]  # of U+1F600..1F63F

LISTING = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600 ; fully-qualified     # X E1.0 grinning face
263A  ; unqualified         # X E0.6 smiling face
# subgroup: hand-fingers-open
1F44B 1F3FB ; fully-qualified # X E1.0 waving hand: light skin tone
1F590 FE0F ; fully-qualified # X E0.7 hand with fingers splayed
"""


def test_list_keeps_fully_qualified_sequences_without_skin_tone(tmp_path: Path):
    path = tmp_path / "emoji-test.txt"
    path.write_text(LISTING, encoding="utf-8")
    found = emoji_from_list(path)
    assert [(emoji.key, emoji.name, emoji.subgroup) for emoji in found] == [
        ("1F600", "grinning face", "face-smiling"),
        ("1F590-FE0F", "hand with fingers splayed", "hand-fingers-open"),
    ]


def test_missing_list_names_the_package(tmp_path: Path):
    with pytest.raises(DataError, match=r"install the Debian package unicode-data") as caught:
        emoji_from_list(tmp_path / "absent.txt")
    assert "\n" not in str(caught.value)


def test_missing_font_names_the_package(tmp_path: Path):
    with pytest.raises(DataError, match=r"install the Debian package fonts-noto-color-emoji") as caught:
        EmojiRenderer(64, tmp_path / "absent.ttf")
    assert "\n" not in str(caught.value)


def test_held_out_split_is_fixed():
    # Written down once: if the hash or the share changes, published figures no longer mean the same pictures.
    keys = [f"{point:04X}" for point in range(0x1F600, 0x1F640)]
    assert [key for key in keys if is_held_out(key)] == HELD_OUT
    assert not is_held_out("1F600", percent=0)
    assert is_held_out("1F600", percent=100)


@needs_font
def test_renderer_draws_colour_on_white_with_a_margin():
    picture = EmojiRenderer(64).render(Emoji((0x1F34E,), "red apple", "food-fruit"))
    assert picture is not None
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert (picture[:2] == 255).all()
    assert (picture[:, :2] == 255).all()
    red, green, _ = picture[36, 24].astype(int)
    assert red > green + 60


@needs_font
def test_renderer_refuses_what_is_not_one_glyph():
    renderer = EmojiRenderer(64)
    assert renderer.render(Emoji((0x1F34E, 0x200D, 0x1F34E), "no such sequence", "food-fruit")) is None
    assert renderer.render(Emoji((0xF0000,), "private use", "none")) is None
    assert renderer.render(Emoji((0x1F469, 0x200D, 0x1F680), "woman astronaut", "person-role")) is not None


@needs_list
def test_the_system_list_has_the_classes_of_the_shipped_model():
    subgroups = dict.fromkeys(emoji.subgroup for emoji in emoji_from_list())
    assert len(subgroups) == 99
    assert next(iter(subgroups)) == "face-smiling"
    assert not any("," in name for name in subgroups)  # DiTPipeline would split them
