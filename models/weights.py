"""Which weight files of a component are read: plain ones, or else one variant (`model.fp16.safetensors`).

Knows diffusers' and transformers' file names and no class of theirs. Never opens a weight file.
"""

import json
import re
from pathlib import Path
from typing import Any

from models.latent_diffusion import SourceError

_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?\.safetensors")
_PREFERRED = ("bf16", "fp16")  # the range of bfloat16 is that of float32


def variant_of(directory: Path) -> str | None:
    """The variant that is read of a component: None where plain files are there, or no weights at all."""
    variants = _variants(directory)
    if None in variants or not variants:
        return None
    return next((name for name in _PREFERRED if name in variants), min(str(name) for name in variants))


def is_read(file: Path) -> bool:
    """Whether a .safetensors file of a component is of the variant that is read."""
    found = _WEIGHTS.fullmatch(file.name)
    return found is not None and found["variant"] == variant_of(file.parent)


def has_weights(directory: Path) -> bool:
    """Whether a component has weights that can be read."""
    return bool(_variants(directory))


def component_config(directory: Path, class_name: str) -> dict[str, Any]:
    """DIRECTORY/config.json; raises SourceError unless it is there, unquantised, with weights that can be read."""
    path = directory / "config.json"
    if not path.is_file():
        raise SourceError(f"{directory}: no config.json; a directory of a {class_name} has one")
    config = read_object(path)
    if config.get("quantization_config"):
        raise SourceError(
            f"{directory}: quantised weights are not read (quantization_config in config.json); give the bfloat16 or "
            f"float16 checkpoint"
        )
    if not _variants(directory):
        found = sorted(p.name for p in directory.iterdir() if p.name != "config.json")
        source = directory.parent
        raise SourceError(
            f"{directory}: no .safetensors weights (found: {', '.join(found) or 'nothing'}); pickled weights are not "
            f'read: convert the pipeline once: python -c "from diffusers import DiffusionPipeline as P; '
            f"P.from_pretrained('{source}').save_pretrained('{source}-safetensors')\""
        )
    return config


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; raises SourceError for a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not JSON ({error}); fetch the file again") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}: holds a {type(found).__name__}, and a JSON object is needed; fetch the file again")
    return found


def _variants(directory: Path) -> set[str | None]:
    found = (_WEIGHTS.fullmatch(path.name) for path in directory.iterdir()) if directory.is_dir() else ()
    return {match["variant"] for match in found if match is not None}
