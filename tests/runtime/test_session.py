"""A bundle kept open: labels, texts and initial images, against the same arithmetic in numpy."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from latentc.errors import RequestError
from latentc.request import Asked, resolve
from latentc.session import Session, open_session
from latentc.trajectory import noise_from_seed

from tests.runtime import toy, toy_variants

SEED = 11


def shape(count: int) -> tuple[int, ...]:
    return (count, toy.CHANNELS, toy.SIZE, toy.SIZE)


def expected(labels: tuple[int, ...], solver: str = "plain", steps: int = 4, cfg_scale: float = 2.0) -> toy.Floats:
    table = toy.table_of(solver, steps)
    draws = noise_from_seed(SEED, shape(len(labels)), table.noise_draws).draws
    return toy.toy_trajectory(toy.toy_model(), table, draws, labels, cfg_scale)


@pytest.fixture(scope="module")
def text(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    root = tmp_path_factory.mktemp("text") / "toy"
    return open_session(toy_variants.make_text(Path(shutil.copytree(pristine, root))), "onnxruntime", threads=1)


def test_labels(pristine: Path) -> None:
    session = open_session(pristine, "onnxruntime", threads=1)
    for label, number, count in (("dog", 1, 2), ("food-fruit", 2, 1)):
        drawn = session.draw(resolve(session.bundle.manifest, Asked(label=label, count=count)), seed=SEED)
        np.testing.assert_allclose(drawn, expected((number,) * count), rtol=0, atol=1e-5)
    drawn = session.draw(resolve(session.bundle.manifest, Asked(label="cat", solver="sde", steps=3)), seed=SEED)
    np.testing.assert_allclose(drawn, expected((0,), "sde", 3), rtol=0, atol=1e-5)


def test_prompts(text: Session) -> None:
    asked = Asked(prompts=("dog", "cat"), count=2)
    drawn = text.draw(resolve(text.bundle.manifest, asked), seed=SEED)
    picture = expected((1, 1, 0, 0))
    np.testing.assert_allclose(drawn, picture, rtol=0, atol=1e-5)
    assert np.abs(picture - expected((0, 0, 1, 1))).max() > 0.01, "the prompts must show"
    hits = text.cache.hits
    again = text.draw(resolve(text.bundle.manifest, asked), seed=SEED)
    np.testing.assert_array_equal(again, drawn)
    assert text.cache.hits == hits + 3  # dog, cat, and ""


def test_tokenizers_are_read_once_a_session(text: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    request = resolve(text.bundle.manifest, Asked(prompts=("dog",)))
    drawn = text.draw(request, seed=SEED)
    monkeypatch.setattr("latentc.text.tokenizer_from_json", None)
    np.testing.assert_array_equal(text.draw(request, seed=SEED), drawn)


def test_what_is_cut_is_warned_of_once(text: Session) -> None:
    request = resolve(text.bundle.manifest, Asked(prompts=("dog", "cat " * 7), count=2))
    with pytest.warns(UserWarning, match=r"^prompt 2 is cut: 8 tokens, text takes 4; left out: ") as caught:
        drawn = text.draw(request, seed=SEED)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_allclose(drawn, expected((1, 1, 0, 0)), rtol=0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.draw(resolve(text.bundle.manifest, Asked(prompts=("dog",))), seed=SEED)


@pytest.mark.parametrize(("strength", "skipped"), [(0.7, 1), (0.4, 2)])
@pytest.mark.parametrize("count", [1, 2])
def test_an_initial_image(over_image: Path, strength: float, skipped: int, count: int) -> None:
    session = open_session(over_image, "onnxruntime", threads=1)
    pixels = np.random.default_rng(2).random((1, 3, toy.SIZE * toy.SCALE, toy.SIZE * toy.SCALE), np.float32)
    asked = Asked(label="dog", solver="sde", steps=3, count=count, init_image=True, strength=strength)
    request = resolve(session.bundle.manifest, asked)
    assert request.skipped == skipped
    drawn = session.draw(request, SEED, pixels)
    table = toy_variants.table_over_image(skipped)
    noise = noise_from_seed(SEED, shape(count), table.noise_draws, encodes=True)
    latents = toy_variants.toy_encode(pixels, noise.encoder)
    picture = toy.toy_trajectory(toy.toy_model(), table, noise.draws, (1,) * count, 2.0, latents)
    np.testing.assert_allclose(drawn, picture, rtol=0, atol=1e-5)
    assert picture.std() > 0.05
    other = session.draw(request, SEED, np.zeros_like(pixels))
    assert np.abs(other - drawn).max() > 0.01, "the image must show"


def test_an_image_and_a_request_for_one_come_together(over_image: Path) -> None:
    session = open_session(over_image, "onnxruntime", threads=1)
    asked = Asked(label="dog", solver="sde", steps=3)
    request = resolve(session.bundle.manifest, asked)
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(RequestError, match="come together"):
        session.draw(request, SEED, pixels)
    request = resolve(session.bundle.manifest, Asked(label="dog", solver="sde", steps=3, init_image=True))
    with pytest.raises(RequestError, match="come together"):
        session.draw(request, SEED)
    with pytest.raises(RequestError, match=r"pixels are float32 \[1, 3, 8, 9\], expected float32 \[1, 3, 8, 8\]"):
        session.draw(request, SEED, np.zeros((1, 3, 8, 9), np.float32))
