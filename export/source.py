"""Finds a source, hashes it, and picks the family that reads it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.families import FAMILIES
from models.latent_diffusion import Family, Lora, SourceError
from models.shipped import shipped_checkpoints
from models.weights import is_read, read_object

_READ_SUFFIXES = (".json", ".safetensors", ".txt", ".model")  # what from_pretrained may open


@dataclass(frozen=True)
class Source:
    """A diffusers directory whose files were hashed before anything but model_index.json was parsed."""

    directory: Path
    family: Family
    loras: tuple[Lora, ...]
    sha256: Mapping[str, str]  # relative path -> hex digest


def find_source(name_or_path: str, loras: tuple[Lora, ...] = ()) -> Source:
    """`name_or_path` is a directory, or the name of a shipped checkpoint; raises SourceError in one line."""
    return hashed_source(source_directory(name_or_path), loras)


def source_directory(name_or_path: str) -> Path:
    """The directory of a source, which has a model_index.json; raises SourceError in one line."""
    shipped = shipped_checkpoints()
    path = Path(name_or_path)
    directory = path if path.is_dir() else shipped.get(name_or_path, path)
    index = directory / "model_index.json"
    if path.suffix == ".pt":
        raise SourceError(
            f"{name_or_path}: a DiT checkpoint of the original repository; convert it: python -m models.dit.original "
            f"{name_or_path} --vae DIR --output DIR"
        )
    if not directory.exists():
        raise SourceError(
            f"{name_or_path}: no such directory, and no shipped model of that name (shipped: "
            f"{', '.join(shipped) or 'none'})"
        )
    if not index.is_file():
        raise SourceError(f"{name_or_path}: no model_index.json; a source is a diffusers pipeline directory")
    return directory


def hashed_source(directory: Path, loras: tuple[Lora, ...] = ()) -> Source:
    """Hashes all that is read of a source and of its adapters, and picks the family; raises SourceError in one line."""
    index = directory / "model_index.json"
    sha256 = {index.name: _sha256(index)}
    model_index = read_object(index)
    for file in _component_files(directory, model_index):
        sha256[file.relative_to(directory).as_posix()] = _sha256(file)
    for lora in loras:
        if not lora.file.is_file():
            raise SourceError(f"--lora {lora.file}: no such file")
        sha256[f"lora:{lora.file.name}:{lora.scale:g}"] = _sha256(lora.file)
    return Source(directory, _family(index, model_index), loras, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _component_files(directory: Path, model_index: Mapping[str, object]) -> list[Path]:
    """What may be read of the components that model_index.json names: no copy in one file, no other variant."""
    folders = [directory / name for name, value in model_index.items() if isinstance(value, list)]
    files = (file for folder in folders if folder.is_dir() for file in folder.rglob("*") if file.is_file())
    return sorted(
        file for file in files if file.suffix in _READ_SUFFIXES and (file.suffix != ".safetensors" or is_read(file))
    )


def _family(index: Path, model_index: Mapping[str, object]) -> Family:
    pipeline = model_index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in FAMILIES:
        raise SourceError(f"{index}: pipeline class {pipeline!r} is not known; known: {', '.join(FAMILIES)}")
    return FAMILIES[pipeline]
