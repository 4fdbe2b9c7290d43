"""What stage A and B draw from: the latents of every emoji, plain, mirrored and in other colours, and its words.

N emoji · K cached pictures · C latent channels · s latent side · S side in pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from models.ldm.augment import pixels_from_uint8
from models.ldm.emoji import EmojiRenderer, emoji_from_list
from models.ldm.journal import load_state, save_state
from models.ldm.latents import encoded
from models.ldm.pictures import UNFLIPPABLE
from models.ldm.text_to_image.captions import Caption, caption_from_emoji
from models.ldm.text_to_image.recolour import COLOURS, main_colour, name_of, recoloured
from models.ldm.train_transformer import picture_weights

RECOMBINED = Path(__file__).parent / "recombined.txt"
# A mirrored person, hand or vehicle means the same, a recoloured one of these means nothing or another emoji.
UNRECOLOURABLE_GROUPS = frozenset({"Flags", "Symbols"})
RECOLOURABLE_SYMBOLS = frozenset({"geometric"})


@dataclass(frozen=True)
class DrawnEmoji:
    """One emoji in pixels and words."""

    picture: np.ndarray  # (S, S, 3) uint8
    caption: Caption
    may_flip: bool
    key: str = ""  # its code points, by which the classifier's pictures are split


@dataclass(frozen=True)
class EmojiLatents:
    """K cached pictures; each emoji knows which of them are its own."""

    values: torch.Tensor  # (K, C, s, s) float32 at unit scale
    captions: tuple[Caption, ...]  # (N,)
    plain: torch.Tensor  # (N, 2) int64: the picture, and its mirror image or the picture again
    colours: tuple[tuple[str, ...], ...]  # (N,) the colours that each emoji was also painted in
    recoloured: torch.Tensor  # (N,) int64: the first of those pictures, in the order of `colours`
    weights: torch.Tensor  # (N,) float64, how often each emoji is drawn


def drawn_emoji(size: int) -> list[DrawnEmoji]:
    """Every emoji of Unicode's list that the font draws as one glyph."""
    renderer = EmojiRenderer(size)
    found = []
    for emoji in emoji_from_list():
        picture = renderer.render(emoji)
        if picture is not None:
            colour = main_colour(picture)
            caption = caption_from_emoji(emoji, name_of(colour) if colour is not None else None)
            found.append(DrawnEmoji(picture, caption, emoji.subgroup not in UNFLIPPABLE, emoji.key))
    return found


@cache
def recombined_prompts() -> tuple[str, ...]:
    """The combinations of colour and thing that the evaluation asks for, and that training therefore never shows."""
    return tuple(RECOMBINED.read_text(encoding="utf-8").split("\n")[:-1])


def recolourings(emoji: DrawnEmoji, names: frozenset[str]) -> list[tuple[str, np.ndarray]]:
    """The emoji in the colours that it has not; where colour and thing are an emoji of their own, that one has them."""
    caption = emoji.caption
    if caption.group in UNRECOLOURABLE_GROUPS and caption.subgroup not in RECOLOURABLE_SYMBOLS:
        return []
    if caption.group == "People & Body" and not caption.subgroup.startswith(("hand", "body")):
        return []
    main = main_colour(emoji.picture)
    if main is None or (caption.uncoloured == caption.name and caption.says_colour(caption.name)):
        return []
    things = (caption.uncoloured, *caption.others)
    kept = names.union(recombined_prompts())
    wanted = [
        word for word in COLOURS if word != caption.colour and kept.isdisjoint(f"{word} {thing}" for thing in things)
    ]
    return [(word, recoloured(emoji.picture, main, word)) for word in wanted]


def emoji_latents(vae: AutoencoderKL, emoji: list[DrawnEmoji], class_balance: float, path: Path) -> EmojiLatents:
    """Encode everything, or take the encoded values from `path`."""
    names = frozenset(one.caption.name for one in emoji)
    pictures = [one.picture for one in emoji]
    plain = []
    for index, one in enumerate(emoji):
        plain.append([index, len(pictures) if one.may_flip else index])
        if one.may_flip:
            pictures.append(one.picture[:, ::-1])
    firsts, colours = [], []
    for one in emoji:
        painted = recolourings(one, names)
        firsts.append(len(pictures))
        colours.append(tuple(word for word, _ in painted))
        pictures += [picture for _, picture in painted]
    state = load_state(path)
    if state is None or len(cast(torch.Tensor, state["values"])) != len(pictures):
        values = []
        for start in tqdm(range(0, len(pictures), 64), desc="encode"):
            images = torch.from_numpy(np.stack(pictures[start : start + 64])).permute(0, 3, 1, 2)  # (B, 3, S, S)
            values.append(encoded(vae, pixels_from_uint8(images)) * vae.config.scaling_factor)
        state = {"values": torch.cat(values)}
        save_state(state, path)
    subgroups = [one.caption.subgroup for one in emoji]
    order = {name: number for number, name in enumerate(dict.fromkeys(subgroups))}
    return EmojiLatents(
        values=cast(torch.Tensor, state["values"]),
        captions=tuple(one.caption for one in emoji),
        plain=torch.tensor(plain),
        colours=tuple(colours),
        recoloured=torch.tensor(firsts),
        weights=picture_weights(torch.tensor([order[name] for name in subgroups]), class_balance),
    )
