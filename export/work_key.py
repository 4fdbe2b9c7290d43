"""The key by which an export finds what an interrupted one left.

It stands for everything that a bundle depends on: the source's bytes, the options, this program's own files, and the
versions of what computes. Two runs of one key make the same bundle, so that one may continue the other.
"""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import latentc

_COMPUTE = (
    "diffusers",
    "ml-dtypes",
    "msgspec",
    "networkx",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "peft",
    "safetensors",
    "scipy",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
)
_ROOMS = (Path(__file__).parent, Path(__file__).parent.parent / "models", Path(latentc.__file__).parent)


def work_key(source: Mapping[str, str], options: str) -> str:
    """64 hex digits. source: the source's files by their sha256; options: what was asked for, as any exact text."""
    versions = {name: _version(name) for name in _COMPUTE} | {"python": platform.python_version()}
    code = {
        f"{room.name}/{path.relative_to(room).as_posix()}": _sha256(path.read_bytes())
        for room in _ROOMS
        for path in sorted(room.rglob("*.py"))
    }
    parts = {"source": dict(source), "options": options, "versions": versions, "code": code}
    return _sha256(json.dumps(parts, sort_keys=True).encode())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # peft and sentencepiece: only where a source needs them
        return "none"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
