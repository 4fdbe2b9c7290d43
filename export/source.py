"""Finds a source, hashes it, and picks the family that reads it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.families import FAMILIES
from models.latent_diffusion import Family, Lora, SourceError
from models.shipped import shipped_checkpoints

_READ_SUFFIXES = (".json", ".safetensors", ".txt", ".model")  # what from_pretrained may open


@dataclass(frozen=True)
class Source:
    """A diffusers directory whose files were hashed before anything parsed them."""

    directory: Path
    family: Family
    loras: tuple[Lora, ...]
    sha256: Mapping[str, str]  # relative path -> hex digest


def find_source(name_or_path: str, loras: tuple[Lora, ...] = ()) -> Source:
    """`name_or_path` is a directory, or the name of a shipped checkpoint; raises SourceError in one line."""
    shipped = shipped_checkpoints()
    path = Path(name_or_path)
    directory = path if path.is_dir() else shipped.get(name_or_path, path)
    index = directory / "model_index.json"
    if not directory.exists():
        raise SourceError(
            f"{name_or_path}: no such directory, and no shipped model of that name (shipped: "
            f"{', '.join(shipped) or 'none'})"
        )
    if not index.is_file():
        raise SourceError(f"{name_or_path}: no model_index.json; a source is a diffusers pipeline directory")
    sha256 = {
        file.relative_to(directory).as_posix(): _sha256(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.suffix in _READ_SUFFIXES
    }
    for lora in loras:
        if not lora.file.is_file():
            raise SourceError(f"--lora {lora.file}: no such file")
        sha256[f"lora:{lora.file.name}:{lora.scale:g}"] = _sha256(lora.file)
    return Source(directory, _family(index), loras, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _family(index: Path) -> Family:
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{index}: not the JSON object of a diffusers pipeline ({error})") from error
    if pipeline not in FAMILIES:
        raise SourceError(f"{index}: pipeline class {pipeline!r} is not known; known: {', '.join(FAMILIES)}")
    return FAMILIES[pipeline]
