"""Pictures of one colour in another one, so that colour words are learned apart from the things they are said of.

S side in pixels. Colours are hue in degrees, saturation and value, as in HSV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Colour:
    """What a colour word means here: the typical hue, saturation and value of a surface of that colour."""

    hue: float
    saturation: float
    value: float


# Black and grey have no hue of their own; white is left out, since the pictures are on white.
COLOURS = {
    "red": Colour(4, 0.80, 0.88),
    "orange": Colour(28, 0.85, 0.98),
    "yellow": Colour(48, 0.80, 0.99),
    "green": Colour(110, 0.70, 0.70),
    "blue": Colour(207, 0.80, 0.88),
    "purple": Colour(282, 0.60, 0.75),
    "pink": Colour(335, 0.45, 0.97),
    "brown": Colour(22, 0.60, 0.52),
    "black": Colour(210, 0.15, 0.24),
    "grey": Colour(205, 0.10, 0.60),
}
LEAST_SATURATION = 0.25
LEAST_AREA = 0.10  # of the picture: what has fewer coloured pixels is line art
LEAST_SHARE = 0.62  # of the coloured pixels: what has less of its main hue has several colours
NAMED_WIDTH = 25.0
WIDTH = 42.0  # degrees each way that count as the same hue: yellow surfaces have orange shadows


def hsv_of(picture: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8 RGB -> (S, S, 3) float32: hue in degrees, saturation and value in 0..1."""
    hsv = np.asarray(Image.fromarray(picture).convert("HSV"), dtype=np.float32)
    return hsv * np.array([360 / 256, 1 / 255, 1 / 255], dtype=np.float32)


def hue_distance(hue: np.ndarray | float, other: float) -> np.ndarray:
    """Degrees between hues on the circle, 0..180."""
    return np.abs((np.asarray(hue) - other + 180.0) % 360.0 - 180.0)


def main_colour(picture: np.ndarray) -> Colour | None:
    """The median colour of what the picture shows, or None where it is colourless or has several colours."""
    hsv = hsv_of(picture)
    coloured = (hsv[..., 1] > LEAST_SATURATION) & (hsv[..., 2] > 0.2)
    if coloured.mean() < LEAST_AREA:
        return None
    hue, saturation, value = hsv[coloured].T
    counts = [int((hue_distance(hue, centre) <= 20).sum()) for centre in range(0, 360, 5)]
    centre = 5.0 * int(np.argmax(counts))
    near = hue_distance(hue, centre) <= WIDTH
    if near.mean() < LEAST_SHARE:
        return None
    offset = float(np.median((hue[near] - centre + 180.0) % 360.0 - 180.0))
    return Colour((centre + offset) % 360.0, float(np.median(saturation[near])), float(np.median(value[near])))


def name_of(colour: Colour) -> str | None:
    """The colour word whose typical colour is nearest, or None between two of them.

    Brown is told from orange and red by its value.
    """
    own = np.asarray([colour.hue]), np.asarray([colour.saturation]), np.asarray([colour.value])

    def distance(word: str) -> float:
        return float(_distance(own[0], own[1], own[2], COLOURS[word])[0])

    nearest = min((word for word in COLOURS if word not in ("black", "grey")), key=distance)
    return nearest if hue_distance(colour.hue, COLOURS[nearest].hue) <= NAMED_WIDTH else None


def most_frequent_word(picture: np.ndarray) -> str | None:
    """The colour word that most of the coloured pixels of (S, S, 3) uint8 are nearest to; None where few have colour.

    This is how the evaluation reads the colour of a drawing.
    """
    hsv = hsv_of(picture)
    coloured = (hsv[..., 1] > LEAST_SATURATION) & (hsv[..., 2] > 0.2)
    if coloured.mean() < LEAST_AREA / 2:
        return None
    words = [word for word in COLOURS if word not in ("black", "grey")]
    hue, saturation, value = hsv[coloured].T
    distances = [_distance(hue, saturation, value, COLOURS[word]) for word in words]
    nearest = np.argmin(np.stack(distances), axis=0)
    return words[int(np.bincount(nearest).argmax())]


def _distance(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray, other: Colour) -> np.ndarray:
    """How unlike a colour is to `other`: hue counts most, value tells brown from orange, pink is told by saturation."""
    angle = hue_distance(hue, other.hue) / 60.0
    return np.asarray(2 * angle**2 + (saturation - other.saturation) ** 2 + (2 * (value - other.value)) ** 2)


def recoloured(picture: np.ndarray, main: Colour, word: str) -> np.ndarray:
    """The picture (S, S, 3) uint8 with its main colour replaced by that of `word`; other hues, black and white stay."""
    hsv = hsv_of(picture)
    wanted = COLOURS[word]
    # Edges are mixed with white: a low saturation weighs little, so that outlines do not jump.
    weight = np.clip((hsv[..., 1] - 0.08) / 0.12, 0.0, 1.0) * (hue_distance(hsv[..., 0], main.hue) <= WIDTH + 10)
    changed = np.empty_like(hsv)
    if word in ("black", "grey"):
        changed[..., 0] = wanted.hue
    else:  # differences of hue are shadows: a little of them stays
        changed[..., 0] = wanted.hue + 0.4 * ((hsv[..., 0] - main.hue + 180.0) % 360.0 - 180.0)
    changed[..., 1] = np.clip(hsv[..., 1] * wanted.saturation / main.saturation, 0.0, 1.0)
    # Value is scaled where the pixel is as coloured as the whole; paler pixels are mixed with white and stay lighter.
    paleness = np.clip(1.0 - hsv[..., 1] / main.saturation, 0.0, 1.0)
    scaled = np.clip(hsv[..., 2] * wanted.value / main.value, 0.0, 1.0)
    changed[..., 2] = scaled * (1.0 - paleness) + hsv[..., 2] * paleness
    rgb = _rgb_of(changed)
    mixed = weight[..., None] * rgb + (1.0 - weight[..., None]) * picture
    return np.asarray(np.clip(np.rint(mixed), 0, 255), dtype=np.uint8)


def _rgb_of(hsv: np.ndarray) -> np.ndarray:
    """(S, S, 3) as of `hsv_of` -> float RGB in 0..255."""
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = (offset + (hue % 360.0) / 60.0) % 6.0
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
    return np.stack(channels, axis=-1) * 255.0
