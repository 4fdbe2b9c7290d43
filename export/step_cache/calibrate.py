"""Chooses, for every table and level, the calls that may leave the middle out: measured on the graphs as written.

For each table the parity request (two pictures, default guidance, the size of all comparisons) is drawn once with full
steps, and what the middle adds is recorded. A level is a quality: of the lists of calls that a threshold can give, the
longest whose picture stays within the level's PSNR of the one of full steps. So a level may cache nothing of a table
with few steps, and is never worse than it says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from latentc import schema
from latentc.backends import open_backend
from latentc.backends.protocol import Engine
from latentc.parity import psnr_db
from latentc.prompt_cache import PromptCache
from latentc.sampler import Sampling
from latentc.trajectory import Trajectory

from export.compile import NarrowedStep
from export.parity_request import parity_trajectory
from export.solver_table import SolverTable
from export.step_cache.levels import LEVELS, MARGIN_DB
from export.step_cache.schedule import most_cached, relative_change


@dataclass(frozen=True)
class Watched:
    """A trajectory of full steps: its picture, and how the middle's residual changes from call to call."""

    picture: np.ndarray
    changes: tuple[float, ...]


def calibrated(
    narrowed: NarrowedStep,
    draft: schema.Manifest,
    tables: tuple[SolverTable, ...],
    tokenizers: Mapping[str, memoryview],
    engines: Mapping[str, Engine],
) -> tuple[schema.Table, ...]:
    """The manifest's tables with the cached calls of every level; `draft` lists them in the order of `tables`."""
    backend, texts = open_backend("onnxruntime"), PromptCache()

    def draws(trajectory: Trajectory) -> Sampling:
        return Sampling(backend, engines, draft, trajectory, texts)

    records = []
    for table, record in zip(tables, draft.tables, strict=True):
        trajectory = parity_trajectory(narrowed.hoisted.step, table, tokenizers)
        records.append(msgspec.structs.replace(record, cached=_levels(trajectory, draws)))
    return tuple(records)


def watched(sampling: Sampling) -> Watched:
    """Draws with full steps, and looks at the residuals of each."""
    changes: list[float] = []
    before: dict[str, np.ndarray] | None = None
    for _ in sampling.steps():
        now = {name: buffer.read() for name, buffer in sampling.residuals.items()}
        changes.append(np.inf if before is None else relative_change(now, before))
        before = now
    return Watched(sampling.decode(), tuple(changes))


def _levels(trajectory: Trajectory, draws: Callable[[Trajectory], Sampling]) -> dict[str, schema.CachedCalls]:
    full = watched(draws(trajectory))
    known: dict[tuple[int, ...], float] = {(): psnr_db(full.picture, full.picture)}

    def quality(calls: tuple[int, ...]) -> float:
        if calls not in known:
            known[calls] = psnr_db(draws(replace(trajectory, cached=calls)).draw(), full.picture)
        return known[calls]

    found = {}
    for level, least_db in LEVELS.items():
        calls, value = most_cached(full.changes, quality, least_db + MARGIN_DB)
        found[level] = schema.CachedCalls(calls=calls, psnr_db=value)
    return found
