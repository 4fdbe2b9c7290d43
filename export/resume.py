"""Results that an interrupted export leaves to the next one, each with a hash of its own."""

import hashlib
import os
from pathlib import Path


def store_result(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` behind its sha256, beside `path` first, so that a kill leaves the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(_sha256(data).encode())
        file.write(data)
    os.replace(partial, path)


def load_result(path: Path) -> bytes | None:
    """What `store_result` wrote; None for what is missing or not what its hash says (a power cut leaves such files)."""
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    digest, content = bytes(data[:64]), data[64:]
    return bytes(content) if _sha256(content).encode() == digest else None


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
