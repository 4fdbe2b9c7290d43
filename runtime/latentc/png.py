"""Writes PNG: the one image format that the runtime needs, in thirty lines.

Pillow would be 22 MB of the installation and 30 ms of every start. The format is W3C's PNG
(third edition): chunks of length, type, data and CRC; rows of samples, each row after its filter's number.
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB8 = (8, 2, 0, 0, 0)  # bit depth, colour type, and the only compression, filter and interlace methods
_SUB = 1  # the filter that stores each pixel as its difference from the one to its left


def png_from_pixels(pixels: npt.NDArray[np.uint8], text: dict[str, str]) -> bytes:
    """A PNG file of uint8 [H, W, 3], with `text` as its text chunks."""
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _SUB
    rows[:, 1:4] = pixels[:, 0]
    rows[:, 4:] = (pixels[:, 1:] - pixels[:, :-1]).reshape(height, -1)  # wraps modulo 256, as the filter does
    chunks = [_chunk(b"IHDR", struct.pack(">II5B", width, height, *_RGB8))]
    chunks += [_text(keyword, value) for keyword, value in text.items()]
    chunks += [_chunk(b"IDAT", zlib.compress(rows.tobytes())), _chunk(b"IEND", b"")]
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text(keyword: str, value: str) -> bytes:
    """A tEXt chunk, which is Latin-1, or an uncompressed iTXt chunk in UTF-8 for what Latin-1 does not have."""
    try:
        return _chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode())
