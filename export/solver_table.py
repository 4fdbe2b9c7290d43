"""Reads a solver off its scheduler: the coefficients of every step, by running it on basis vectors.

Every scheduler without clipping or thresholding is linear in the unit noise, the model's outputs and
the injected noise. Let the scheduler step a "latent" whose coordinates stand for exactly these, with
model output i the unit vector e(1+i) and noise draw j the unit vector e(1+calls+j): what it returns
*is* the row of coefficients. A second run with random data shows whether the scheduler was linear.

The table's slots: 0 the unit noise, 1…calls the model outputs, then the noise draws.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.overrides import TorchFunctionMode

from export.solvers import Solver
from models.latent_diffusion import SourceError

LINEARITY_BOUND = 1e-5  # relative; schedulers that compute in float32 reach 1e-7, clipping is above 1e-2
_NORMAL = (torch.randn, torch.randn_like)
_OTHER_RANDOM = (torch.rand, torch.rand_like, torch.normal, torch.bernoulli, torch.multinomial, torch.randint)


class NonLinearSolverError(SourceError):
    """The scheduler is no table: names it, and the setting that is known to make it so."""


@dataclass(frozen=True)
class SolverTable:
    """A solver at one step count; float64 rows, the bundle keeps them in float32."""

    solver: Solver
    steps: int
    input_rows: npt.NDArray[np.float64]  # [calls, slots]   x̂_i = Σ_k input_rows[i, k]·history[k]
    output_row: npt.NDArray[np.float64]  # [slots]          x_N = Σ_k output_row[k]·history[k]
    timesteps: npt.NDArray[np.float64]  # [calls]          what the denoiser is told
    noise_draws: int

    @property
    def calls(self) -> int:
        """How often the denoiser runs: more than `steps` for Heun, KDPM2 and PNDM."""
        return len(self.timesteps)


def table_from_solver(solver: Solver, steps: int) -> SolverTable:
    """Probes `solver` at `steps` steps; raises NonLinearSolverError for one that is not linear."""
    calls = len(_set_timesteps(solver, steps).timesteps)
    # The number of noise draws is learned from a first run with room for two a call.
    draws = _run(solver, steps, _Basis(calls, noise_draws=2 * calls)).draws
    run = _run(solver, steps, _Basis(calls, noise_draws=draws))
    table = SolverTable(
        solver=solver,
        steps=steps,
        input_rows=np.stack([row.numpy().reshape(-1) for row in run.inputs]),
        output_row=run.output.numpy().reshape(-1),
        timesteps=run.timesteps.double().numpy(),
        noise_draws=draws,
    )
    _check_linear(table)
    return _without_unused_noise(table)


@dataclass(frozen=True)
class _Run:
    """What a scheduler did: its scaled inputs, its last sample, its timesteps, how often it drew noise."""

    inputs: Sequence[Tensor]
    output: Tensor
    timesteps: Tensor
    draws: int


class _Basis:
    """Unit vectors of [1, slots, 1, 1] for the noise, each model output and each draw."""

    def __init__(self, calls: int, noise_draws: int) -> None:
        self.unit = torch.eye(1 + calls + noise_draws, dtype=torch.float64)[:, None, :, None, None]
        self.calls = calls

    def noise(self) -> Tensor:
        return self.unit[0]

    def output(self, call: int) -> Tensor:
        return self.unit[1 + call]

    def draw(self, index: int) -> Tensor:
        return self.unit[1 + self.calls + index]


class _Random:
    """Random data of [1, 3, 8, 8] in the same roles; model outputs large enough to meet any clipping."""

    def __init__(self, calls: int, noise_draws: int) -> None:
        generator = torch.Generator().manual_seed(20)
        self.history = torch.randn(1 + calls + noise_draws, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
        self.history[1 : 1 + calls] *= 3.0
        self.calls = calls

    def noise(self) -> Tensor:
        return self.history[0]

    def output(self, call: int) -> Tensor:
        return self.history[1 + call]

    def draw(self, index: int) -> Tensor:
        return self.history[1 + self.calls + index]


class _NoiseFrom(TorchFunctionMode):
    """Hands out noise from `source` wherever the scheduler draws a normal; refuses other randomness."""

    def __init__(self, source: _Basis | _Random, solver: Solver) -> None:
        super().__init__()
        self.source = source
        self.solver = solver
        self.draws = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        if func in _NORMAL:
            self.draws += 1
            return self.source.draw(self.draws - 1).clone()
        if func in _OTHER_RANDOM or getattr(func, "__name__", "") in ("normal_", "uniform_", "bernoulli_"):
            raise NonLinearSolverError(f"{self.solver.name}: draws random numbers that are not normal; not a table")
        return func(*args, **dict(kwargs or {}))


def _set_timesteps(solver: Solver, steps: int) -> SchedulerMixin:
    scheduler = solver.fresh()
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError, ImportError) as error:
        raise SourceError(f"{solver.name} cannot take {steps} steps: {_one_line(error)}") from error
    return scheduler


def _run(solver: Solver, steps: int, data: _Basis | _Random) -> _Run:
    scheduler = _set_timesteps(solver, steps)
    timesteps: Tensor = scheduler.timesteps
    # Flow-matching schedulers scale neither the noise nor the input, and have no such members.
    scale = getattr(scheduler, "scale_model_input", lambda sample, _timestep: sample)
    sample = data.noise() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    extra = {"generator": torch.Generator()} if "generator" in inspect.signature(scheduler.step).parameters else {}
    inputs = []
    with _NoiseFrom(data, solver) as noise:
        for call, timestep in enumerate(timesteps):
            inputs.append(scale(sample, timestep).double())
            try:
                sample = scheduler.step(data.output(call), timestep, sample, **extra).prev_sample
            # What diffusers' schedulers raise for a missing package, another step(), or an unsupported setting.
            except (ImportError, TypeError, NotImplementedError, IndexError) as error:
                raise NonLinearSolverError(f"{solver.name} cannot be read as a table: {_one_line(error)}") from error
    return _Run(inputs, sample.double(), timesteps.detach().cpu(), noise.draws)


def _check_linear(table: SolverTable) -> None:
    """Replays the table on random data against the scheduler itself, inputs and output."""
    data = _Random(table.calls, table.noise_draws)
    run = _run(table.solver, table.steps, data)
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
    noise_columns = slice(1 + table.calls, None)
    if table.noise_draws and not (table.input_rows[:, noise_columns].any() or table.output_row[noise_columns].any()):
        kept = 1 + table.calls
        return SolverTable(
            table.solver, table.steps, table.input_rows[:, :kept], table.output_row[:kept], table.timesteps, 0
        )
    return table


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
