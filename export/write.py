"""Writes what a bundle holds beside its graphs (export/graph_files.py): tables, tokenizers, and then the seal.

The manifest goes last, after every other file was hashed, and its own hash goes beside it
(docs/bundle-format.md).
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import safetensors.numpy
from latentc import schema
from latentc.bundle import MANIFEST, PARITY

from export.manifest import table_record, tokenizer_file
from export.solver_table import SolverTable
from models.latent_diffusion import LatentDiffusion

REFERENCES = "parity.safetensors"


def write_tables(directory: Path, tables: Sequence[SolverTable]) -> tuple[schema.Table, ...]:
    """tables/SOLVER-STEPS.safetensors in float32; returns what the manifest says of them."""
    (directory / "tables").mkdir()
    records = []
    for table in tables:
        size = table.schedule.pixels
        suffix = "" if size is None else f"-{size[0]}x{size[1]}"
        file = f"tables/{table.solver.name}-{table.steps}{suffix}.safetensors"
        tensors = _table_tensors(table, "")
        for skipped, over_image in table.over_image.items():
            prefix = f"img2img/{skipped}/"
            counts = np.array([over_image.calls, over_image.noise_draws], np.int64)
            tensors |= _table_tensors(over_image, prefix) | {f"{prefix}counts": counts}
        safetensors.numpy.save_file(tensors, directory / file)
        records.append(table_record(table, file))
    return tuple(records)


def _table_tensors(table: SolverTable, prefix: str) -> dict[str, np.ndarray]:
    return {
        f"{prefix}input_rows": table.input_rows.astype(np.float32),
        f"{prefix}output_row": table.output_row.astype(np.float32),
        f"{prefix}timesteps": table.timesteps.astype(np.float32),
    }


def write_tokenizers(directory: Path, model: LatentDiffusion) -> dict[str, memoryview]:
    """tokenizers/TEXT_ENCODER.json in the format of the `tokenizers` package; returns their bytes by file."""
    tokenizers = tokenizers_of(model)
    for file, data in tokenizers.items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_bytes(data)
    return tokenizers


def tokenizers_of(model: LatentDiffusion) -> dict[str, memoryview]:
    """The bytes of every tokenizer by its file in the bundle."""
    return {tokenizer_file(encoder): memoryview(encoder.tokenizer.to_str().encode()) for encoder in model.text_encoders}


def seal(
    directory: Path,
    draft: schema.Manifest,
    parity: schema.Parity,
    references: Mapping[str, np.ndarray],
    known: Mapping[str, schema.FileRecord] | None = None,
) -> schema.Manifest:
    """Writes the parity report, the manifest with every file's hash, and then the manifest's own hash.

    known: records of files that were hashed as they were written; all others are hashed here.
    """
    (directory / PARITY).write_bytes(_pretty(parity))
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in references.items()}, directory / REFERENCES)
    manifest = msgspec.structs.replace(draft, files=_file_records(directory, known or {}))
    data = _pretty(manifest)
    (directory / MANIFEST).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (directory / f"{MANIFEST}.sha256").write_text(f"{digest}  {MANIFEST}\n", encoding="ascii")
    return manifest


def _file_records(directory: Path, known: Mapping[str, schema.FileRecord]) -> dict[str, schema.FileRecord]:
    records = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            file, num_bytes = path.relative_to(directory).as_posix(), os.path.getsize(path)
            record = known.get(file) or schema.FileRecord(sha256=_file_sha256(path), num_bytes=num_bytes)
            assert record.num_bytes == num_bytes, f"{file} has changed since it was written"
            records[file] = record
    return records


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pretty(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
