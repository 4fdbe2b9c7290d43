"""Tables of flow models, of sizes, and of requests that begin with an image, against the schedulers themselves."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from export.solver_probe import Schedule
from export.solver_table import SolverTable, table_from_solver
from export.solvers import FLOW_ALIASES, Solver, own_solver, solver_from_name
from models.latent_diffusion import SourceError

STEPS = 6
SHAPE = (2, 3, 4, 2)
WEIGHT = torch.randn(24, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 24


def betas() -> SchedulerMixin:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)


def flow(shift: float = 3.0) -> SchedulerMixin:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def denoise(sample: torch.Tensor, timestep: float) -> torch.Tensor:
    """Depends on its input, so that an error feeds on itself."""
    return torch.tanh(sample.flatten(1) @ WEIGHT + timestep / 1000).view_as(sample)


def replayed(table: SolverTable, noise: list[torch.Tensor], image: torch.Tensor | None) -> np.ndarray:
    """The loop of the design in float64."""
    history = np.zeros((len(table.output_row), *SHAPE))
    history[0] = noise[0]
    for draw in range(table.noise_draws):
        history[1 + table.calls + draw] = noise[1 + draw]
    if image is not None:
        history[-1] = image
    for call in range(table.calls):
        seen = torch.from_numpy(np.tensordot(table.input_rows[call], history, 1))
        history[1 + call] = denoise(seen, float(table.timesteps[call])).numpy()
    return np.tensordot(table.output_row, history, 1)


def stepped(solver: Solver, skipped: int | None, noise: list[torch.Tensor], image: torch.Tensor) -> np.ndarray:
    """The scheduler's own loop, begun as diffusers' pipelines begin it."""
    scheduler = solver.fresh()
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps[(skipped or 0) * scheduler.order :]
    remaining = iter(noise[1:])
    if skipped is None:
        sample = noise[0] * float(getattr(scheduler, "init_noise_sigma", 1.0))
    else:
        scheduler.set_begin_index(skipped * scheduler.order) if hasattr(scheduler, "set_begin_index") else None
        if hasattr(scheduler, "scale_noise"):
            sample = scheduler.scale_noise(image, timesteps[:1], noise[0])
        else:
            sample = scheduler.add_noise(image, noise[0], timesteps[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: next(remaining).clone())
        for timestep in timesteps:
            scaled = sample
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(denoise(scaled.double(), float(timestep)), timestep, sample).prev_sample
    return sample.double().numpy()


def check(table: SolverTable, solver: Solver, skipped: int | None) -> None:
    generator = torch.Generator().manual_seed(6)
    noise = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(1 + 2 * STEPS)]
    image = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    expected = stepped(solver, skipped, noise, image)
    actual = replayed(table, noise, None if skipped is None else image)
    assert np.linalg.norm(actual - expected) <= 2e-6 * np.linalg.norm(expected)
    if skipped:  # with none skipped a flow begins with pure noise
        other = replayed(table, noise, image + 1)
        assert np.linalg.norm(other - expected) > 1e-3 * np.linalg.norm(expected), "the image does not matter"


@pytest.mark.parametrize("alias", FLOW_ALIASES)
@pytest.mark.parametrize("source", ["a flow's own scheduler", "DPM-Solver++ on a flow"])
def test_a_flow_is_solved_by_every_alias(alias: str, source: str) -> None:
    sana = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    solver = solver_from_name(alias, flow() if "own" in source else DPMSolverMultistepScheduler(**sana))
    check(table_from_solver(solver, STEPS), solver, None)


@pytest.mark.parametrize(
    "alias", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_a", "heun", "lms", "unipc", "lcm"]
)
def test_drawing_over_an_image_begins_where_diffusers_begins(alias: str) -> None:
    solver = solver_from_name(alias, betas())
    table = table_from_solver(solver, STEPS, img2img=True)
    assert list(table.over_image) == list(range(STEPS))
    for skipped, over_image in table.over_image.items():
        check(over_image, solver, skipped)
    assert len(table.output_row) == 1 + table.calls + table.noise_draws  # no slot for an image that is not there


@pytest.mark.parametrize("alias", ["euler", "heun", "dpmpp_2m"])
def test_a_flow_over_an_image(alias: str) -> None:
    solver = solver_from_name(alias, flow())
    for skipped, over_image in table_from_solver(solver, STEPS, img2img=True).over_image.items():
        check(over_image, solver, skipped)


def test_the_names_of_solvers_follow_the_model() -> None:
    assert type(solver_from_name("euler", flow()).scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert type(solver_from_name("euler", betas()).scheduler).__name__ == "EulerDiscreteScheduler"
    assert own_solver(flow()).name == "euler"
    sana = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert own_solver(sana).name == "dpmpp_2m"
    assert solver_from_name("euler", sana).scheduler.config.shift == 3.0  # SANA's flow_shift
    assert solver_from_name("unipc", flow(2.5)).scheduler.config.flow_shift == 2.5


@pytest.mark.parametrize(
    ("alias", "name"), [("dpmpp_2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")]
)
def test_a_class_by_its_name_solves_the_flow_as_its_alias_does(alias: str, name: str) -> None:
    by_alias, by_name = (table_from_solver(solver_from_name(n, flow()), STEPS) for n in (alias, name))
    np.testing.assert_array_equal(by_alias.timesteps, by_name.timesteps)
    np.testing.assert_array_equal(by_alias.output_row, by_name.output_row)


def test_a_scheduler_that_cannot_begin_with_an_image_says_so() -> None:
    with pytest.raises(SourceError, match="--img2img: IPNDMScheduler has no add_noise; take another --solver"):
        table_from_solver(solver_from_name("IPNDMScheduler", betas()), STEPS, img2img=True)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_a_schedule_of_betas_is_refused_for_a_flow(name: str) -> None:
    with pytest.raises(SourceError, match="the model is a flow, and this class has no use_flow_sigmas"):
        solver_from_name(name, flow())
    with pytest.raises(SourceError, match=r"unknown solver 'pndm' for a flow model; known: euler"):
        solver_from_name("pndm", flow())


def test_timesteps_that_depend_on_the_size_are_set_for_it() -> None:
    def by_size(scheduler: SchedulerMixin, steps: int, height: int, width: int) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps) ** (height * width / 64))

    solver = own_solver(flow(1.0))
    small, large = (table_from_solver(solver, 4, Schedule(by_size, size, size, factor=8)) for size in ((8, 8), (8, 16)))
    assert (small.schedule.pixels, large.schedule.pixels) == ((64, 64), (128, 64))
    assert np.abs(small.timesteps - large.timesteps).max() > 10


def test_a_start_that_a_scheduler_does_not_have_is_no_table() -> None:
    """The negative control: one step more or less is seen by the comparison."""
    solver = solver_from_name("ddim", betas())
    table = table_from_solver(solver, STEPS, img2img=True)
    with pytest.raises(AssertionError):
        check(table.over_image[2], solver, 3)
