"""Pictures with cached steps against pictures of full ones, at the bundle's defaults: what a level is held to."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from latentc import schema
from latentc.backends.protocol import Backend, Engine
from latentc.parity import psnr_db
from latentc.sampler import sample
from latentc.verification_cache import FULL_STEPS, IMAGE

from export.examples import parity_size
from export.parity_request import parity_request, parity_table, parity_trajectory
from export.solver_table import SolverTable
from export.source import Source
from export.step import FusedStep


def cached_figures(
    source: Source,
    step: FusedStep,
    draft: schema.Manifest,
    tables: tuple[SolverTable, ...],
    tokenizers: Mapping[str, memoryview],
    backend: Backend,
    engines: Mapping[str, Engine],
    known: Mapping[str, np.ndarray],
    full_psnr_db: float,
) -> tuple[list[schema.Figure], dict[str, np.ndarray]]:
    """Two figures for each level, and the picture of diffusers that one of them speaks of.

    known: references so far; diffusers' picture is taken from there where it is of the same table.
    full_psnr_db: the bound of full steps against diffusers.
    """
    assert draft.step_cache is not None, "only a bundle with a step cache has levels"
    table, record = _default(step, draft, tables)
    trajectory = parity_trajectory(step, table, tokenizers)
    if table is parity_table(step, tables):
        reference = known["trajectory/image"]
    else:
        request = parity_request(step, table)
        image = source.family.reference_image(source.directory, table.solver.fresh(), request, source.loras)
        reference = image.numpy()
    full = sample(backend, engines, draft, trajectory)
    figures = []
    what = f"{table.steps} steps of {table.solver.name}"
    for level, least_db in draft.step_cache.levels.items():
        picture = sample(backend, engines, draft, replace(trajectory, cached=record.cached[level].calls))
        both = (
            (IMAGE, full, least_db, "the loop of full steps"),
            (FULL_STEPS, reference, _together(least_db, full_psnr_db), f"{step.model.pipeline} of diffusers"),
        )
        figures += [
            schema.Figure(
                tensor=f"{name}@{level}",
                measure="psnr_db",
                value=psnr_db(picture, expected, peak=1.0),
                bound=bound,
                against=f"{against}, same seed, {what}",
            )
            for name, expected, bound, against in both
        ]
    return figures, {FULL_STEPS: reference}


def _default(
    step: FusedStep, draft: schema.Manifest, tables: tuple[SolverTable, ...]
) -> tuple[SolverTable, schema.Table]:
    """The table of the defaults at the size of the comparison."""
    wanted, size = (draft.defaults.solver, draft.defaults.steps), parity_size(step.model)
    return next(
        (table, record)
        for table, record in zip(tables, draft.tables, strict=True)
        if (record.solver, record.steps) == wanted and table.schedule.size in (None, size)
    )


def _together(first_db: float, second_db: float) -> float:
    """The PSNR that two errors have at least when they add up: the root mean squares are added."""
    return -20.0 * math.log10(10 ** (-first_db / 20) + 10 ** (-second_db / 20))
