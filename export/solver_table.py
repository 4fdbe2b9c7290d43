"""Reads a solver off its scheduler: the coefficients of every step, by running it on basis vectors.

Every scheduler without clipping or thresholding is linear in the unit noise, the model's outputs and
the injected noise. Let the scheduler step a "latent" whose coordinates stand for exactly these, with
model output i the unit vector e(1+i) and noise draw j the unit vector e(1+calls+j): what it returns
*is* the row of coefficients. A second run with random data shows whether the scheduler was linear.

The table's slots: 0 the unit noise, 1…calls the model outputs, then the noise draws, and for a request that
begins with an image one more, its latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from export.solver_probe import BasisVectors, NonLinearSolverError, Probe, RandomData, Schedule
from export.solvers import Solver

LINEARITY_BOUND = 1e-5  # relative; schedulers that compute in float32 reach 1e-7, clipping is above 1e-2


@dataclass(frozen=True)
class SolverTable:
    """A solver at one step count; float64 rows, the bundle keeps them in float32."""

    solver: Solver
    schedule: Schedule
    steps: int
    input_rows: npt.NDArray[np.float64]  # [calls, slots]   x̂_i = Σ_k input_rows[i, k]·history[k]
    output_row: npt.NDArray[np.float64]  # [slots]          x_N = Σ_k output_row[k]·history[k]
    timesteps: npt.NDArray[np.float64]  # [calls]          what the denoiser is told
    noise_draws: int
    over_image: Mapping[int, "SolverTable"]  # skipped steps -> the table of a request that begins with an image

    @property
    def calls(self) -> int:
        """How often the denoiser runs: more than `steps` for Heun, KDPM2 and PNDM."""
        return len(self.timesteps)


def table_from_solver(
    solver: Solver, steps: int, schedule: Schedule | None = None, img2img: bool = False
) -> SolverTable:
    """Probes `solver` at `steps` steps; raises NonLinearSolverError for one that is not linear.

    With `img2img` also for each number of steps that an initial image can stand for, as diffusers' img2img pipelines
    begin: add_noise (or scale_noise of a flow) at the first timestep that is left.
    """
    schedule = Schedule() if schedule is None else schedule
    over_image = {k: _probed(solver, steps, schedule, k, {}) for k in range(steps)} if img2img else {}
    return _probed(solver, steps, schedule, None, over_image)


def _probed(
    solver: Solver, steps: int, schedule: Schedule, skipped: int | None, over_image: Mapping[int, SolverTable]
) -> SolverTable:
    run_of = Probe(solver, steps, schedule, skipped)
    calls = len(run_of.timesteps(run_of.scheduler()))
    # The number of noise draws is learned from a first run with room for two a call.
    draws = run_of(BasisVectors(calls, noise_draws=2 * calls)).draws
    run = run_of(BasisVectors(calls, noise_draws=draws))
    table = SolverTable(
        solver=solver,
        schedule=schedule,
        steps=steps,
        input_rows=np.stack([row.numpy().reshape(-1) for row in run.inputs]),
        output_row=run.output.numpy().reshape(-1),
        timesteps=run.timesteps.double().numpy(),
        noise_draws=draws,
        over_image=over_image,
    )
    _check_linear(table, run_of)
    table = _without_unused_noise(table)
    return table if skipped is not None else _without_image(table)


def _check_linear(table: SolverTable, run_of: Probe) -> None:
    """Replays the table on random data against the scheduler itself, inputs and output."""
    data = RandomData(table.calls, table.noise_draws)
    run = run_of(data)
    history = data.history.flatten(1).numpy()
    expected = np.stack([row.flatten().numpy() for row in (*run.inputs, run.output)])
    replayed = np.vstack([table.input_rows, table.output_row]) @ history
    scale = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(replayed - expected, axis=1) / np.where(scale > 0, scale, 1.0)
    if run.draws != table.noise_draws or not np.all(error <= LINEARITY_BOUND):
        name, config = table.solver.name, table.solver.scheduler.config
        guilty = [key for key in ("clip_sample", "thresholding") if config.get(key)]
        because = f"{' and '.join(guilty)} is on" if guilty else "its step depends on the data"
        raise NonLinearSolverError(
            f"{name} ({type(table.solver.scheduler).__name__}) is not linear: {because} (a replay on other data "
            f"differs by {float(np.nan_to_num(error, nan=np.inf).max()):.1e}); switch it off "
            f"in scheduler_config.json, or take another --solver"
        )


def _without_unused_noise(table: SolverTable) -> SolverTable:
    """Drops the noise slots of a scheduler that draws and then multiplies by zero (Euler without churn)."""
    noise = slice(1 + table.calls, -1)
    if not table.noise_draws or table.input_rows[:, noise].any() or table.output_row[noise].any():
        return table
    kept = [*range(1 + table.calls), -1]
    return replace(table, input_rows=table.input_rows[:, kept], output_row=table.output_row[kept], noise_draws=0)


def _without_image(table: SolverTable) -> SolverTable:
    """Drops the slot of the image, which a request that begins with noise does not have."""
    return replace(table, input_rows=table.input_rows[:, :-1], output_row=table.output_row[:-1])
