"""Labelled pictures: from a folder, from the font; which may be mirrored."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from models.ldm.config import DataConfig
from models.ldm.emoji import FONT_PATH, LIST_PATH, DataError
from models.ldm.pictures import load_split, pictures_from_emoji, pictures_from_folder

needs_emoji = pytest.mark.skipif(
    not (FONT_PATH.is_file() and LIST_PATH.is_file()), reason="needs fonts-noto-color-emoji and unicode-data"
)


def test_folder_gives_one_class_a_subfolder(tmp_path: Path):
    for name, colour in (("red", (255, 0, 0, 255)), ("clear", (0, 0, 0, 0))):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (40, 20), colour).save(tmp_path / name / "a.png")
    found = pictures_from_folder(tmp_path, 16)
    assert found.classes == ("clear", "red")
    assert found.keys == ("clear/a.png", "red/a.png")
    assert found.labels.tolist() == [0, 1]
    assert found.images.shape == (2, 3, 16, 16)
    assert found.images[0].min() == 255  # transparent becomes white
    assert found.images[1, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("make", [False, True])
def test_folder_without_pictures_is_refused_in_one_line(tmp_path: Path, make: bool):
    folder = tmp_path / "data"
    if make:
        folder.mkdir()
    with pytest.raises(DataError, match=r"--data .*data: no ") as caught:
        pictures_from_folder(folder, 16)
    assert "\n" not in str(caught.value)


def test_split_of_too_few_pictures_is_refused(tmp_path: Path):
    (tmp_path / "only").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "only" / "a.png")
    with pytest.raises(DataError, match="too few"):
        load_split(DataConfig(tmp_path, 16))


@needs_emoji
def test_pictures_that_a_mirror_would_change_are_never_mirrored():
    pictures = pictures_from_emoji(16)
    by_key = dict(zip(pictures.keys, pictures.may_flip.tolist(), strict=True))
    for key in ("27A1-FE0F", "1F1EB-1F1F7", "1F550", "0031-FE0F-20E3", "2795", "1F170-FE0F", "1F5FE"):
        assert by_key[key] is False, key  # arrow, flag, clock, keycap, sign, letter, map
    for key in ("1F34E", "1F600", "1F697"):
        assert by_key[key] is True, key  # fruit, face, car
    assert len(pictures) > 1_800
    split = load_split(DataConfig(None, 16))
    assert not set(split.train.keys) & set(split.held_out.keys)
    assert len(split.train) + len(split.held_out) == len(pictures)
    assert 0.05 < len(split.held_out) / len(pictures) < 0.11
    assert torch.equal(
        split.train.labels, pictures.where(torch.tensor([k in set(split.train.keys) for k in pictures.keys])).labels
    )
