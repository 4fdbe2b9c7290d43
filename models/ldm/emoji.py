"""Pictures of Noto Color Emoji with the subgroups of Unicode's emoji-test.txt as their classes.

Contract: everything comes from two files that the system's packages install, and nothing is downloaded. What the font
cannot draw as ONE glyph (a sequence that falls apart into its parts) is dropped, never drawn as several.
Skin-tone variants are left out: they are 1,785 of the 3,655 sequences and would teach hands and people above all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

FONT_PATH = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST_PATH = Path("/usr/share/unicode/emoji/emoji-test.txt")
GLYPH_SIZE = 109  # the only size of the font's bitmaps (CBDT strike)
CANVAS = 144  # every glyph is a 136 x 128 bitmap: the square keeps a margin, so that small shifts cut nothing off
SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
HELD_OUT_PERCENT = 8


class DataError(ValueError):
    """The user's data or the system's packages are not what training needs; the message is one line."""


@dataclass(frozen=True)
class Emoji:
    """One fully-qualified sequence of emoji-test.txt."""

    sequence: tuple[int, ...]
    name: str
    subgroup: str
    group: str = ""

    @property
    def text(self) -> str:
        return "".join(map(chr, self.sequence))

    @property
    def key(self) -> str:
        """The sequence as hexadecimal code points, such as `1F469-200D-1F680`."""
        return "-".join(f"{point:04X}" for point in self.sequence)


def emoji_from_list(path: Path = LIST_PATH) -> list[Emoji]:
    """All fully-qualified sequences without skin tone, in the order of the file."""
    if not path.is_file():
        raise DataError(f"{path} is missing: install the Debian package unicode-data, or give pictures with --data DIR")
    found: list[Emoji] = []
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line:
            points, comment = line.split(";", 1)
            sequence = tuple(int(point, 16) for point in points.split())
            name = comment.split("#", 1)[1].split(maxsplit=2)[2]  # "# <emoji> E<version> <name>"
            if not SKIN_TONES.intersection(sequence):
                found.append(Emoji(sequence, name, subgroup, group))
    return found


def is_held_out(key: str, percent: int = HELD_OUT_PERCENT) -> bool:
    """Whether a picture is in the held-out split: by a hash of its key, so that no change of the data moves another."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100 < percent


class EmojiRenderer:
    """Draws one sequence on white; None where the font has no single glyph for it."""

    def __init__(self, size: int, font_path: Path = FONT_PATH) -> None:
        if not font_path.is_file():
            raise DataError(
                f"{font_path} is missing: install the Debian package fonts-noto-color-emoji, "
                "or give pictures with --data DIR"
            )
        if not features.check("raqm"):
            raise DataError(
                "Pillow has no raqm layout and cannot shape emoji sequences: install the Debian package libraqm0"
            )
        self.size = size
        self._font = ImageFont.truetype(str(font_path), GLYPH_SIZE, layout_engine=ImageFont.Layout.RAQM)
        self._advance = self._font.getlength("\N{GRINNING FACE}")
        # The tofu box: what the font draws for a code point that it does not have.
        self._missing = self._draw("\U000f0000")

    def _draw(self, text: str) -> Image.Image:
        canvas = Image.new("RGBA", (CANVAS, CANVAS), (255, 255, 255, 255))
        layer = Image.new("RGBA", (CANVAS, CANVAS), (255, 255, 255, 0))
        ImageDraw.Draw(layer).text((CANVAS / 2, CANVAS / 2), text, font=self._font, embedded_color=True, anchor="mm")
        return Image.alpha_composite(canvas, layer).convert("RGB")

    def render(self, emoji: Emoji) -> np.ndarray | None:
        """(size, size, 3) uint8, or None where the sequence falls apart into several glyphs or none."""
        if abs(self._font.getlength(emoji.text) - self._advance) > 1:
            return None
        picture = self._draw(emoji.text)
        if picture.tobytes() == self._missing.tobytes():
            return None
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.LANCZOS))
