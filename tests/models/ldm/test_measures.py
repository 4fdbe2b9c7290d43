"""PSNR and sharpness against known values; the nearest training picture; the model card."""

from pathlib import Path

import pytest
import torch

from models.ldm.augment import pixels_from_uint8
from models.ldm.card import BEGIN, END, write_card
from models.ldm.journal import save_grid
from models.ldm.measures import psnr_db, sharpness_ratio
from models.ldm.neighbours import nearest_training_pictures
from tests.models.ldm import tiny


def test_psnr_of_a_known_error():
    picture = torch.zeros(2, 3, 8, 8)
    assert psnr_db(picture, picture + 0.2) == pytest.approx(20.0, abs=1e-3)  # 0.1 of the peak


def test_blur_lowers_sharpness_and_a_copy_keeps_it():
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(picture, 3, stride=1, padding=1)
    assert sharpness_ratio(picture, picture) == pytest.approx(1.0)
    assert sharpness_ratio(picture, blurred) < 0.5


def test_nearest_picture_is_found_through_shift_and_mirror():
    training = tiny.pictures(8, seed=1)
    pixels = pixels_from_uint8(training.images)
    found = nearest_training_pictures(torch.stack([pixels[3], pixels[5].flip(-1)]), training, shift=1)
    assert found.indices.tolist() == [3, 5]
    assert found.mirrored.tolist() == [False, True]
    assert found.distances.max() < 1e-3


def test_card_keeps_what_is_written_by_hand(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n", encoding="utf-8")
    figures = {
        "held_out_pictures": 146.0,
        "reconstruction_psnr_db": 27.125,
        "reconstruction_sharpness": 0.987,
        "no_gan_reconstruction_psnr_db": 29.5,
        "no_gan_reconstruction_sharpness": 0.8,
        "classifier_accuracy_held_out": 0.5,
        "classifier_accuracy_samples": 0.45,
        "samples": 792.0,
        "nearest_distance_samples_median": 0.2,
        "nearest_distance_held_out_median": 0.4,
        "samples_nearer_than_threshold": 0.25,
        "distinct_neighbours": 300.0,
    }
    write_card(card, figures)
    text = card.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old figures" not in text
    assert "with the discriminator" not in text  # that run's figures are not known here
    for shown in ("27.12 dB | 0.987", "29.50 dB | 0.800", "50.0%", "| 0.90 |", "25.0%"):
        assert shown in text, shown
    write_card(card, figures)
    assert card.read_text(encoding="utf-8") == text
    card.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="marks"):
        write_card(card, figures)


@pytest.mark.parametrize("name", ["grid.png", "grid.webp"])
def test_grid_has_one_tile_a_picture(tmp_path: Path, name: str):
    from PIL import Image

    save_grid(torch.stack([torch.full((3, 4, 4), value) for value in (-1.0, 0.0, 1.0)]), tmp_path / name, columns=2)
    with Image.open(tmp_path / name) as grid:
        assert grid.size == (8, 8)
        assert [grid.getpixel(point)[0] for point in ((1, 1), (5, 1), (1, 5), (5, 5))] == [0, 128, 255, 255]
