"""Whether an export can be finished, asked before it begins: disk and memory needed against what there is.

Asked twice: of an estimate from the source's headers, before any work, and of the exact sizes before the first byte is
written. A refusal is one line with both numbers.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from latentc import schema

from export.memory import available_memory, resident_bytes
from export.source_sizes import SourceSizes
from models.latent_diffusion import SourceError

# Tables, tokenizers, the graphs without their weights, and the tensors of the parity report.
SMALL_FILES_BYTES = 64 << 20
_BYTES: dict[schema.Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
# Of the largest weight, in float32: as it is stored, as float32, as it is written, and the one before it.
_COPIES = 4


@dataclass(frozen=True)
class MemoryNeed:
    """What an export holds at its peak, in bytes."""

    program: int  # libraries, modules without weights, graphs
    weights: int
    verification: int

    @property
    def total(self) -> int:
        return self.program + self.weights + self.verification


def estimated_bundle_bytes(sizes: SourceSizes, precision: schema.Precision) -> int:
    """All weights in the graphs' precision. What a float16 or int8 bundle keeps in float32 (prompt, schedule, islands;
    for int8 all but the loop) is known when its graphs are, and comes on top.
    """
    return sizes.num_parameters * _BYTES[precision] + SMALL_FILES_BYTES


def memory_need(largest_parameter: int, program_bytes: int, verification_bytes: int) -> MemoryNeed:
    """largest_parameter: elements of the largest weight."""
    return MemoryNeed(program_bytes, _COPIES * 4 * largest_parameter, verification_bytes)


def require_disk(target: Path, need_bytes: int, kept_bytes: int = 0) -> None:
    """Raises SourceError unless a bundle of `need_bytes` has room beside the old one.

    kept_bytes: what of it lies there already (`Stage.kept_bytes`).
    """
    parent = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    missing = need_bytes - kept_bytes - free
    if missing > 0:
        raise SourceError(
            f"{target}: the bundle needs {_gigabytes(need_bytes - kept_bytes)} more on disk (an old one stays until it "
            f"is whole), and {parent} has {_gigabytes(free)} free; free {_gigabytes(missing)}, or give --output a path "
            "on another file system"
        )


def require_memory(need: MemoryNeed) -> None:
    """Raises SourceError unless this process can grow to `need`; passes where the system does not say what it has."""
    available = available_memory()
    if available is None:
        return
    have = available.num_bytes + resident_bytes()
    if need.total > have:
        parts = f"{_gigabytes(need.program)} for itself, {_gigabytes(need.weights)} for the largest weight"
        raise SourceError(
            f"the export needs {_gigabytes(need.total)} of memory ({parts}, {_gigabytes(need.verification)} for its "
            f"verification), and {available.limited_by} allows {_gigabytes(have)}; end other programs, give a smaller "
            "--memory, or use a larger machine"
        )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
