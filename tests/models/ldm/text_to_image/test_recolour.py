"""The main colour of a picture, and the picture in another one."""

import numpy as np
import pytest

from models.ldm.text_to_image.captions import Caption
from models.ldm.text_to_image.dataset import DrawnEmoji, recolourings, recombined_prompts
from models.ldm.text_to_image.recolour import COLOURS, hsv_of, hue_distance, main_colour, name_of, recoloured


def disc(colour: tuple[int, int, int]) -> np.ndarray:
    """A disc with a black dot on white."""
    y, x = np.mgrid[:32, :32] - 15.5
    picture = np.full((32, 32, 3), 255, dtype=np.uint8)
    picture[np.hypot(x, y) < 13] = colour
    picture[np.hypot(x, y) < 3] = 0
    return picture


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((220, 50, 40), "red"), ((250, 200, 40), "yellow"), ((40, 130, 220), "blue"), ((60, 170, 60), "green")],
)
def test_main_colour_is_named(rgb: tuple[int, int, int], name: str):
    colour = main_colour(disc(rgb))
    assert colour is not None
    assert name_of(colour) == name


def test_colourless_and_many_coloured_pictures_have_none():
    assert main_colour(disc((120, 120, 120))) is None
    halves = disc((220, 50, 40))
    halves[:16][(halves[:16] == (220, 50, 40)).all(-1)] = (40, 130, 220)
    assert main_colour(halves) is None


@pytest.mark.parametrize("word", COLOURS)
def test_recoloured_picture_has_that_colour_and_keeps_black_and_white(word: str):
    picture = disc((250, 200, 40))
    main = main_colour(picture)
    assert main is not None
    changed = recoloured(picture, main, word)
    surface = hsv_of(changed)[4, 15]
    wanted = COLOURS[word]
    assert hue_distance(surface[0], wanted.hue) < 8
    assert surface[1:] == pytest.approx([wanted.saturation, wanted.value], abs=0.08)
    assert (changed[0, 0] == 255).all()
    assert (changed[15, 15] == 0).all()


def test_what_the_evaluation_asks_for_is_never_shown():
    assert "blue car" in recombined_prompts()
    car = DrawnEmoji(
        disc((220, 50, 40)), Caption("automobile", "transport-ground", "Travel & Places", ("car",), "red"), True
    )
    colours = {word for word, _ in recolourings(car, frozenset({"purple automobile"}))}
    assert colours.isdisjoint({"blue", "red", "purple"})
    assert {"yellow", "pink"} <= colours


def test_flags_and_people_keep_their_colours():
    for group, subgroup in (("Flags", "flag"), ("People & Body", "person-role")):
        assert not recolourings(
            DrawnEmoji(disc((220, 50, 40)), Caption("x", subgroup, group, (), "red"), True), frozenset()
        )
