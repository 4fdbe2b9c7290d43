"""Tables against the schedulers that they were read from."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from export.solver_probe import NonLinearSolverError
from export.solver_table import table_from_solver
from export.solvers import ALIASES, own_solver, solver_from_name
from models.latent_diffusion import SourceError


def source_scheduler(**settings: object) -> SchedulerMixin:
    return DDIMScheduler(**{"beta_schedule": "linear", "clip_sample": False, **settings})


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_replay_equals_the_scheduler(alias: str, prediction: str) -> None:
    """A denoiser that depends on its input, so that an error would feed on itself: x -> tanh(Wx + t)."""
    solver = solver_from_name(alias, source_scheduler(prediction_type=prediction))
    table = table_from_solver(solver, 7)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(24, 24, generator=generator, dtype=torch.float64) / 24
    draws = [torch.randn(2, 3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(1 + table.noise_draws)]

    def denoise(sample: torch.Tensor, timestep: float) -> torch.Tensor:
        return torch.tanh(sample.flatten(1) @ weight + timestep / 1000).view_as(sample)

    # The scheduler's own loop, with our draws in place of its generator.
    scheduler = solver.fresh()
    scheduler.set_timesteps(7)
    remaining = iter(draws[1:])
    sample = draws[0] * float(scheduler.init_noise_sigma)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: next(remaining).clone())
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(denoise(scaled.double(), float(timestep)), timestep, sample).prev_sample

    # The table's loop, in float64.
    history = np.zeros((1 + table.calls + table.noise_draws, 2, 3, 4, 2))
    history[0] = draws[0]
    for i in range(table.noise_draws):
        history[1 + table.calls + i] = draws[1 + i]
    for i in range(table.calls):
        seen = torch.from_numpy(np.tensordot(table.input_rows[i], history, 1))
        history[1 + i] = denoise(seen, float(table.timesteps[i])).numpy()
    replayed = np.tensordot(table.output_row, history, 1)
    error = np.linalg.norm(replayed - sample.double().numpy()) / np.linalg.norm(sample.numpy())
    assert error <= 2e-6  # schedulers that compute in float32 set this; the others reach 1e-15
    assert np.linalg.norm(sample.numpy()) > 0.1


def test_a_wrong_row_is_seen_by_the_replay() -> None:
    """The negative control of the comparison above: 1 % on one coefficient is far outside its bound."""
    table = table_from_solver(solver_from_name("dpmpp_2m", source_scheduler()), 7)
    wrong = table.output_row.copy()
    wrong[-1] *= 1.01
    assert np.linalg.norm(wrong - table.output_row) / np.linalg.norm(table.output_row) > 1e-5


@pytest.mark.parametrize(("alias", "calls"), [("ddim", 10), ("heun", 19), ("kdpm2", 19), ("pndm", 19), ("euler", 10)])
def test_two_stage_solvers_have_more_rows_than_steps(alias: str, calls: int) -> None:
    assert table_from_solver(solver_from_name(alias, source_scheduler()), 10).calls == calls


@pytest.mark.parametrize(("alias", "draws"), [("ddpm", 9), ("euler", 0), ("euler_a", 10), ("dpmpp_2m_sde", 10)])
def test_noise_draws_are_counted_and_useless_ones_dropped(alias: str, draws: int) -> None:
    assert table_from_solver(solver_from_name(alias, source_scheduler()), 10).noise_draws == draws


def test_no_row_uses_the_future() -> None:
    for alias in ("ddpm", "heun", "unipc", "lms"):
        table = table_from_solver(solver_from_name(alias, source_scheduler()), 6)
        assert not np.triu(table.input_rows[:, 1 : 1 + table.calls]).any(), alias


@pytest.mark.parametrize("setting", ["clip_sample", "thresholding"])
def test_a_scheduler_that_is_not_linear_is_refused_by_name_and_reason(setting: str) -> None:
    with pytest.raises(NonLinearSolverError, match=rf"ddim \(DDIMScheduler\) is not linear: {setting} is on"):
        table_from_solver(solver_from_name("ddim", source_scheduler(**{setting: True})), 5)


def test_a_step_that_depends_on_the_data_is_refused_without_a_setting_to_blame() -> None:
    class Rounding(DDIMScheduler):
        def step(self, *args: object, **kwargs: object) -> object:
            result = super().step(*args, **kwargs)
            result.prev_sample = result.prev_sample.round(decimals=1)
            return result

    with pytest.raises(NonLinearSolverError, match="its step depends on the data"):
        table_from_solver(own_solver(Rounding(clip_sample=False)), 5)


def test_randomness_that_is_not_normal_is_refused() -> None:
    class Uniform(DDIMScheduler):
        def step(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor) -> object:
            return super().step(model_output + torch.rand(model_output.shape), timestep, sample)

    with pytest.raises(NonLinearSolverError, match="not normal"):
        table_from_solver(own_solver(Uniform(clip_sample=False)), 5)


def test_the_sources_own_solver_keeps_its_settings() -> None:
    karras = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    assert own_solver(karras).name == "dpmpp_2m_karras"
    assert own_solver(DPMSolverMultistepScheduler(solver_order=3)).name == "dpmpp_3m"
    trailing = own_solver(EulerDiscreteScheduler(timestep_spacing="trailing"))
    assert trailing.name == "euler"
    assert trailing.fresh().config.timestep_spacing == "trailing"


def test_settings_carry_over_to_another_solver() -> None:
    solver = solver_from_name("dpmpp_2m_karras", source_scheduler(prediction_type="v_prediction"))
    assert solver.scheduler.config.prediction_type == "v_prediction"
    assert solver.scheduler.config.beta_schedule == "linear"
    assert solver.scheduler.config.use_karras_sigmas is True


def test_karras_and_plain_tables_differ() -> None:
    plain, karras = (
        table_from_solver(solver_from_name(n, source_scheduler()), 6) for n in ("dpmpp_2m", "dpmpp_2m_karras")
    )
    assert np.abs(plain.timesteps - karras.timesteps).max() > 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpmpp_2n", r"unknown solver 'dpmpp_2n'; known: ddim.*did you mean dpmpp_2m\?"),
        ("NoSuchScheduler", "is no scheduler of diffusers"),
        ("FlowMatchEulerDiscreteScheduler", "the model has a schedule of betas, and this class takes none"),
        ("EDMEulerScheduler", "the model has a schedule of betas, and this class takes none"),
    ],
)
def test_a_name_that_cannot_be_used_says_what_can(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        solver_from_name(name, source_scheduler())


def test_epsilon_only_solvers_refuse_a_v_model() -> None:
    with pytest.raises(SourceError, match="predicts v_prediction, and this class knows epsilon only"):
        solver_from_name("IPNDMScheduler", source_scheduler(prediction_type="v_prediction"))


def test_more_steps_than_a_scheduler_takes_is_one_line() -> None:
    with pytest.raises(SourceError, match="lcm cannot take 900 steps: "):
        table_from_solver(solver_from_name("lcm", source_scheduler()), 900)
