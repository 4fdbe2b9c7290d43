"""The checkpoints that travel with this repository, by name."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "ldm" / "checkpoints"


def shipped_checkpoints() -> dict[str, Path]:
    """Name -> diffusers directory."""
    return {path.parent.name: path.parent for path in sorted(CHECKPOINTS.glob("*/model_index.json"))}
