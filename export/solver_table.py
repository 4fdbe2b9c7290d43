"""Reads a solver off its scheduler: the coefficients of every step, by running it on basis vectors.

Every scheduler without clipping or thresholding is linear in the unit noise, the model's outputs and
the injected noise. Let the scheduler step a "latent" whose coordinates stand for exactly these, with
model output i the unit vector e(1+i) and noise draw j the unit vector e(1+calls+j): what it returns
*is* the row of coefficients. A second run with random data shows whether the scheduler was linear.

The table's slots: 0 the unit noise, 1…calls the model outputs, then the noise draws, and for a request that
begins with an image one more, its latents.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.overrides import TorchFunctionMode

from export.solvers import Solver
from models.latent_diffusion import SourceError, plain_timesteps

LINEARITY_BOUND = 1e-5  # relative; schedulers that compute in float32 reach 1e-7, clipping is above 1e-2
_NORMAL = (torch.randn, torch.randn_like)
_OTHER_RANDOM = (torch.rand, torch.rand_like, torch.normal, torch.bernoulli, torch.multinomial, torch.randint)


class NonLinearSolverError(SourceError):
    """The scheduler is no table: names it, and the setting that is known to make it so."""


@dataclass(frozen=True)
class Schedule:
    """How a pipeline sets the timesteps of its scheduler, for latents of one size."""

    set_timesteps: Callable[[SchedulerMixin, int, int, int], None] = plain_timesteps  # (scheduler, steps, H, W)
    latent_size: tuple[int, int] = (1, 1)  # H, W
    size: tuple[int, int] | None = None  # H, W again where the timesteps depend on them
    factor: int = 1  # pixels a latent

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height in pixels, where the timesteps depend on them."""
        return None if self.size is None else (self.factor * self.size[1], self.factor * self.size[0])


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
    run_of = _Probe(solver, steps, schedule, skipped)
    calls = len(run_of.timesteps(run_of.scheduler()))
    # The number of noise draws is learned from a first run with room for two a call.
    draws = run_of(_Basis(calls, noise_draws=2 * calls)).draws
    run = run_of(_Basis(calls, noise_draws=draws))
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
        self.unit = torch.eye(1 + calls + noise_draws + 1, dtype=torch.float64)[:, None, :, None, None]
        self.calls = calls

    def noise(self) -> Tensor:
        return self.unit[0]

    def output(self, call: int) -> Tensor:
        return self.unit[1 + call]

    def draw(self, index: int) -> Tensor:
        return self.unit[1 + self.calls + index]

    def image(self) -> Tensor:
        return self.unit[-1]


class _Random:
    """Random data of [1, 3, 8, 8] in the same roles; model outputs large enough to meet any clipping."""

    def __init__(self, calls: int, noise_draws: int) -> None:
        generator = torch.Generator().manual_seed(20)
        self.history = torch.randn(1 + calls + noise_draws + 1, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
        self.history[1 : 1 + calls] *= 3.0
        self.calls = calls

    def noise(self) -> Tensor:
        return self.history[0]

    def output(self, call: int) -> Tensor:
        return self.history[1 + call]

    def draw(self, index: int) -> Tensor:
        return self.history[1 + self.calls + index]

    def image(self) -> Tensor:
        return self.history[-1]


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


@dataclass(frozen=True)
class _Probe:
    """One way to run a scheduler, as often as is wanted; `skipped` steps of it are stood for by an image."""

    solver: Solver
    steps: int
    schedule: Schedule
    skipped: int | None

    def scheduler(self) -> SchedulerMixin:
        """A fresh one, its timesteps set."""
        scheduler = self.solver.fresh()
        try:
            self.schedule.set_timesteps(scheduler, self.steps, *self.schedule.latent_size)
        except (ValueError, IndexError, RuntimeError, ImportError) as error:
            raise SourceError(f"{self.solver.name} cannot take {self.steps} steps: {_one_line(error)}") from error
        return scheduler

    def timesteps(self, scheduler: SchedulerMixin) -> Tensor:
        """Those of the calls that are made."""
        timesteps: Tensor = scheduler.timesteps
        return timesteps if not self.skipped else timesteps[self.skipped * scheduler.order :]

    def __call__(self, data: _Basis | _Random) -> _Run:
        solver, scheduler = self.solver, self.scheduler()
        timesteps = self.timesteps(scheduler)
        # Flow-matching schedulers scale neither the noise nor the input, and have no such members.
        scale = getattr(scheduler, "scale_model_input", lambda sample, _timestep: sample)
        extra = {"generator": torch.Generator()} if "generator" in inspect.signature(scheduler.step).parameters else {}
        inputs = []
        with _NoiseFrom(data, solver) as noise:
            sample = self._first_sample(scheduler, timesteps, data)
            for call, timestep in enumerate(timesteps):
                inputs.append(scale(sample, timestep).double())
                try:
                    sample = scheduler.step(data.output(call), timestep, sample, **extra).prev_sample
                # What diffusers' schedulers raise for a missing package, another step(), or an unsupported setting.
                except (ImportError, TypeError, NotImplementedError, IndexError) as error:
                    raise NonLinearSolverError(
                        f"{solver.name} cannot be read as a table: {_one_line(error)}"
                    ) from error
        return _Run(inputs, sample.double(), timesteps.detach().cpu(), noise.draws)

    def _first_sample(self, scheduler: SchedulerMixin, timesteps: Tensor, data: _Basis | _Random) -> Tensor:
        if self.skipped is None:
            return data.noise() * float(getattr(scheduler, "init_noise_sigma", 1.0))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.skipped * scheduler.order)
        if hasattr(scheduler, "scale_noise"):
            sample: Tensor = scheduler.scale_noise(data.image(), timesteps[:1], data.noise())
        else:
            sample = scheduler.add_noise(data.image(), data.noise(), timesteps[:1])
        return sample


def _check_linear(table: SolverTable, run_of: _Probe) -> None:
    """Replays the table on random data against the scheduler itself, inputs and output."""
    data = _Random(table.calls, table.noise_draws)
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


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
