"""The one request that an export is judged by: as diffusers answers it, and as the runtime's arrays."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from latentc.request import Request, skipped_steps
from latentc.table import SolverTable as RuntimeTable
from latentc.text import Tokenizers
from latentc.trajectory import Trajectory, noise_from_seed, trajectory_of

from export.examples import TEXTS, parity_size
from export.manifest import conditioning_record, table_record
from export.parity_inputs import BATCH, SEED, picture
from export.solver_table import SolverTable
from export.step import FusedStep
from models.latent_diffusion import ReferenceRequest


def parity_request(step: FusedStep, table: SolverTable) -> ReferenceRequest:
    """Two labels or prompts, the default guidance, the fixed seed, the size of the comparison."""
    model = step.model
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    if model.labels is not None:
        labels = tuple(sorted(set(model.labels.numbers.values())))[:BATCH]
    else:
        prompts = (TEXTS[0], TEXTS[3])
    factor = model.image_shape[1] // model.latent_shape[1]
    height, width = parity_size(model)
    return ReferenceRequest(
        seed=SEED,
        steps=table.steps,
        cfg_scale=model.default_cfg_scale,
        labels=labels,
        prompts=prompts,
        guidance=model.default_guidance,
        height=factor * height,
        width=factor * width,
    )


def over_image(request: ReferenceRequest, strength: float, pixels: np.ndarray) -> ReferenceRequest:
    """The same request over an image, float32 [1, 3, height, width]."""
    return replace(request, init_image=np.ascontiguousarray(pixels[0].transpose(1, 2, 0)), strength=strength)


def parity_strength(step: FusedStep, table: SolverTable) -> float:
    """The family's own strength, or all of it where that is no step of this table (SDXL's 0.3 of 2 steps)."""
    own = step.model.default_strength
    return own if skipped_steps(table.steps, own, step.model.strength_rounds_up) < table.steps else 1.0


def parity_skipped(step: FusedStep, table: SolverTable) -> int:
    """The steps that the image stands for at `parity_strength`, as the runtime counts them."""
    return skipped_steps(table.steps, parity_strength(step, table), step.model.strength_rounds_up)


def parity_trajectory(
    step: FusedStep, table: SolverTable, tokenizers: Mapping[str, memoryview], skipped: int | None = None
) -> Trajectory:
    """The arrays of `parity_request`, as the runtime makes them; with `skipped`, over the synthetic picture."""
    model, asked = step.model, parity_request(step, table)
    assert asked.width, "the parity request has a size"
    assert asked.height, "the parity request has a size"
    probed = table if skipped is None else table.over_image[skipped]
    request = Request(
        table=table_record(table, ""),
        cfg_scale=asked.cfg_scale,
        width=asked.width,
        height=asked.height,
        labels=asked.labels,
        prompts=asked.prompts,
        guidance=asked.guidance,
        skipped=skipped,
    )
    size = parity_size(model)
    shape = (request.count, model.latent_shape[0], *size)
    noise = noise_from_seed(SEED, shape, probed.noise_draws, encodes=skipped is not None)
    pixels = None if skipped is None else picture(model, size)
    multiple = model.sizes.multiple if model.sizes is not None else 1
    opened = Tokenizers(tokenizers)
    return trajectory_of(conditioning_record(model), multiple, request, runtime_table(probed), noise, opened, pixels)


def parity_table(step: FusedStep, tables: tuple[SolverTable, ...]) -> SolverTable:
    """The default solver with the fewest calls, at the size of the comparison: the least cost for a large model."""
    size = parity_size(step.model)
    own = (t for t in tables if t.solver.name == tables[0].solver.name and t.schedule.size in (None, size))
    return min(own, key=lambda t: t.calls)


def runtime_table(table: SolverTable) -> RuntimeTable:
    """The table in float32, as the bundle keeps it."""
    return RuntimeTable(
        input_rows=table.input_rows.astype(np.float32),
        output_row=table.output_row.astype(np.float32),
        timesteps=table.timesteps.astype(np.float32),
        noise_draws=table.noise_draws,
    )
