"""The judge of drawn pictures can learn, and is loaded once it has."""

from dataclasses import replace
from pathlib import Path

import torch

from models.ldm.augment import pixels_from_uint8
from models.ldm.classifier import ClassifierConfig, accuracy, train_classifier
from tests.models.ldm import tiny

CONFIG = replace(ClassifierConfig(), channels=(8, 16), dropout=0.0, steps=40, warmup_steps=4, batch=16, shift=0)


def test_it_learns_two_classes_and_is_kept(tmp_path: Path):
    pictures = tiny.pictures(16, seed=1)
    brighter = torch.where(pictures.labels[:, None, None, None] == 1, pictures.images // 2 + 127, pictures.images // 2)
    pictures = replace(pictures, images=brighter.to(torch.uint8))
    pixels = pixels_from_uint8(pictures.images)
    classifier = train_classifier(CONFIG, pictures, tmp_path / "classifier.pt")
    assert accuracy(classifier, pixels, pictures.labels) == 1.0
    assert accuracy(classifier, pixels, 1 - pictures.labels) == 0.0
    again = train_classifier(replace(CONFIG, steps=0), pictures, tmp_path / "classifier.pt")
    # The memory format differs, the weights do not.
    assert torch.allclose(classifier(pixels), again(pixels), atol=1e-5)
