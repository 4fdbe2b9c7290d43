"""Runs a scheduler on data of our own in place of latents, model outputs and noise.

The data's roles: the unit noise, model output i, noise draw j, and the latents of an initial image.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.overrides import TorchFunctionMode

from export.solvers import Solver
from models.latent_diffusion import SourceError, plain_timesteps

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
class ProbeRun:
    """What a scheduler did: its scaled inputs, its last sample, its timesteps, how often it drew noise."""

    inputs: Sequence[Tensor]
    output: Tensor
    timesteps: Tensor
    draws: int


class BasisVectors:
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


class RandomData:
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

    def __init__(self, source: BasisVectors | RandomData, solver: Solver) -> None:
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
class Probe:
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
            raise SourceError(f"{self.solver.name} cannot take {self.steps} steps: {one_line(error)}") from error
        return scheduler

    def timesteps(self, scheduler: SchedulerMixin) -> Tensor:
        """Those of the calls that are made."""
        timesteps: Tensor = scheduler.timesteps
        return timesteps if not self.skipped else timesteps[self.skipped * scheduler.order :]

    def __call__(self, data: BasisVectors | RandomData) -> ProbeRun:
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
                    raise NonLinearSolverError(f"{solver.name} cannot be read as a table: {one_line(error)}") from error
        return ProbeRun(inputs, sample.double(), timesteps.detach().cpu(), noise.draws)

    def _first_sample(self, scheduler: SchedulerMixin, timesteps: Tensor, data: BasisVectors | RandomData) -> Tensor:
        if self.skipped is None:
            return data.noise() * float(getattr(scheduler, "init_noise_sigma", 1.0))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self.skipped * scheduler.order)
        if hasattr(scheduler, "scale_noise"):
            sample: Tensor = scheduler.scale_noise(data.image(), timesteps[:1], data.noise())
        elif hasattr(scheduler, "add_noise"):
            sample = scheduler.add_noise(data.image(), data.noise(), timesteps[:1])
        else:
            name = type(scheduler).__name__
            raise SourceError(f"--img2img: {name} has no add_noise; take another --solver, or leave --img2img away")
        return sample


def one_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
