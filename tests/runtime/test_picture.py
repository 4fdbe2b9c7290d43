"""Quantising, the grid, and PNG files that appear whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from latentc.errors import LatentcError
from latentc.picture import grid, output_paths, parameters_text, quantise, write_png
from PIL import Image


def test_quantise_rounds_clips_and_moves_channels_last() -> None:
    values = np.array([0.0, 1.0, 0.5, 1.2, -0.1, 0.25, 1 / 255, 0.0019], np.float32)
    images = np.stack([values.reshape(2, 4)] * 3)[None]  # [1, 3, 2, 4]
    images[:, 1] = 0
    pixels = quantise(images)
    assert pixels.shape == (1, 2, 4, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, :, :, 0].ravel().tolist() == [0, 255, 128, 255, 0, 64, 1, 0]  # 127.5 rounds to even, as in numpy
    assert not pixels[..., 1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_picture_is_not_drawn_black(bad: float) -> None:
    images = np.zeros((1, 3, 2, 2), np.float32)
    images[0, 0, 0, 0] = bad
    with pytest.raises(LatentcError, match="NaN or an infinity"):
        quantise(images)


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (4, 2, 2), (5, 2, 3), (9, 3, 3)]
)
def test_grid_places_pictures_in_reading_order(count: int, rows: int, columns: int) -> None:
    images = np.zeros((count, 2, 3, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    drawn = grid(images)
    assert drawn.shape == (rows * 2, columns * 3, 3)
    for i in range(rows * columns):
        cell = drawn[i // columns * 2 :, i % columns * 3 :][:2, :3]
        assert (cell == (i if i < count else 255)).all()


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (1, 7), (7, 1), (33, 65)])
def test_pillow_reads_the_png_that_we_write(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels, None)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_png_holds_the_pixels_and_the_text(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for text in ("cat\nSteps: 4", "ü\nSteps: 4", "猫\nSteps: 4", None):
        write_png(tmp_path / "a.png", pixels, text)
        with Image.open(tmp_path / "a.png") as image:
            assert image.info.get("parameters") == text
            np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LatentcError, match=r"a\.png: cannot be written: No space left on device"):
        write_png(path, np.zeros((2, 2, 3), np.uint8), None)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.png"]


def test_output_paths(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert output_paths(out, 4, separate=False) == [out]
    assert [path.name for path in output_paths(out, 2, separate=True)] == ["a-000.png", "a-001.png"]
    assert output_paths(out, 1001, separate=True)[-1].name == "a-1000.png"
    (tmp_path / "dir.png").mkdir()
    for path, why in (
        (tmp_path / "a.jpg", "give a name that ends in .png"),
        (Path("/dev/null"), "give a name that ends in .png"),
        (tmp_path / "none/a.png", "there is no directory"),
        (tmp_path / "dir.png", "is there already, and is no file"),
        (tmp_path / f"{'a' * 300}.png", "cannot be written: File name too long"),
    ):
        with pytest.raises(LatentcError, match=why):
            output_paths(path, 1, separate=False)


def test_parameters_are_quoted_where_a_reader_would_split_them() -> None:
    text = parameters_text("cat", None, {"Steps": "4", "Model": 'a, "b"'})
    assert text == 'cat\nSteps: 4, Model: "a, \\"b\\""'
