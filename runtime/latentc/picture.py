"""Pictures: from the decoder's floats to PNG files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentc.errors import LatentcError
from latentc.png import png_from_pixels

Pixels = npt.NDArray[np.uint8]


def quantise(images: npt.NDArray[np.float32]) -> Pixels:
    """float32 [B, 3, H, W] in [0, 1] to uint8 [B, H, W, 3], rounded as diffusers rounds.

    Raises LatentcError for a NaN or an infinity: a black picture would hide it.
    """
    if not np.isfinite(images).all():
        raise LatentcError("the decoder returned a NaN or an infinity; latentc verify says where it comes from")
    pixels: Pixels = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def grid(images: Pixels) -> Pixels:
    """uint8 [B, H, W, 3] to one [rows * H, columns * W, 3], as square as it can be; empty cells are white."""
    count, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
    cells[:count] = images
    return (
        cells.reshape(rows, columns, height, width, channels)
        .transpose(0, 2, 1, 3, 4)  # [rows, H, columns, W, 3]
        .reshape(rows * height, columns * width, channels)
    )


def output_paths(output: Path, count: int, separate: bool) -> list[Path]:
    """The files that will be written; raises LatentcError for what cannot be, before any work is done."""
    if output.suffix.lower() != ".png":
        raise LatentcError(f"-o {output}: pictures are written as PNG; give a name that ends in .png")
    paths = [output]
    if separate:
        digits = max(3, len(str(count - 1)))
        paths = [output.with_name(f"{output.stem}-{i:0{digits}d}{output.suffix}") for i in range(count)]
    if not output.parent.is_dir():
        raise LatentcError(f"-o {output}: there is no directory {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise LatentcError(f"-o {output}: the directory {output.parent} cannot be written to")
    for path in paths:
        try:
            in_the_way = path.exists() and not path.is_file()
        except OSError as error:  # the name is too long
            raise LatentcError(f"-o {path}: cannot be written: {error.strerror}") from None
        if in_the_way:
            raise LatentcError(f"-o {path}: is there already, and is no file")
    return paths


def write_png(path: Path, pixels: Pixels, parameters: str | None) -> None:
    """Writes uint8 [H, W, 3], with `parameters` as the text chunk of that name; by rename, never half."""
    encoded = png_from_pixels(pixels, {} if parameters is None else {"parameters": parameters})
    staged = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}")
    try:
        try:
            staged.write_bytes(encoded)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise LatentcError(f"-o {path}: cannot be written: {error.strerror}") from None


def parameters_text(prompt: str, negative_prompt: str | None, fields: dict[str, str]) -> str:
    """The generation parameters in the form that AUTOMATIC1111's web UI writes and other tools read.

    The prompt, the negative prompt, then `Key: value` pairs in one line; a value with a separator in it is quoted.
    """
    pairs = []
    for key, value in fields.items():
        if any(mark in value for mark in ",:\n"):
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        pairs.append(f"{key}: {value}")
    lines = [prompt, *([f"Negative prompt: {negative_prompt}"] if negative_prompt is not None else [])]
    return "\n".join([*lines, ", ".join(pairs)])
