"""Initial images: read as diffusers' image processor reads them, and refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from latentc.errors import BackendError, RequestError
from latentc.init_image import pixels_from_file
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def test_the_exact_size_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    read = pixels_from_file(tmp_path / "a.png", 8, 6)
    assert (read.dtype, read.shape) == (np.float32, (1, 3, 6, 8))
    np.testing.assert_array_equal(read[0].transpose(1, 2, 0), PIXELS.astype(np.float32) / 255)


def test_another_size_is_resized(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png")
    expected = np.asarray(image.resize((16, 12), Image.Resampling.LANCZOS), np.float32) / 255
    np.testing.assert_array_equal(pixels_from_file(tmp_path / "a.png", 16, 12)[0].transpose(1, 2, 0), expected)


def test_transparency_is_put_on_white_and_grey_becomes_three_channels(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (pixels_from_file(tmp_path / "clear.png", 8, 6) == 1).all()
    Image.new("L", (8, 6), 51).save(tmp_path / "grey.png")
    np.testing.assert_allclose(pixels_from_file(tmp_path / "grey.png", 8, 6), np.full((1, 3, 6, 8), 0.2), atol=1e-7)


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    turned = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # orientation: turn it a quarter to the right
    turned.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(
        pixels_from_file(tmp_path / "a.png", 8, 6)[0].transpose(1, 2, 0), PIXELS.astype(np.float32) / 255
    )


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="has 16 bits a channel; save it with 8"):
        pixels_from_file(tmp_path / "a.png", 8, 6)


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"x" * 40])
def test_what_is_no_picture_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="--init-image") as caught:
        pixels_from_file(path, 8, 6)
    assert "\n" not in str(caught.value)


def test_without_pillow_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'pip install "latentc\[image\]"'):
        pixels_from_file(tmp_path / "a.png", 8, 6)
