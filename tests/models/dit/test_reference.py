"""The mended reference against the bare DiTPipeline, and against the solver that it stands for."""

from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline, EulerDiscreteScheduler

from export.solvers import solver_from_name
from models.components import load_scheduler
from models.dit.reference import PipelineScheduler, reference_image
from models.latent_diffusion import ReferenceRequest


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("cfg_scale", [4.0, 1.0])
def test_changes_nothing_where_diffusers_is_right(random_dit: Path, solver: str, cfg_scale: float) -> None:
    scheduler = solver_from_name(solver, load_scheduler(random_dit))
    request = ReferenceRequest(labels=(1, 7), seed=3, steps=3, cfg_scale=cfg_scale)
    pipeline = DiTPipeline.from_pretrained(random_dit)
    pipeline.scheduler = scheduler.fresh()
    pipeline.set_progress_bar_config(disable=True)
    bare = pipeline(
        list(request.labels),
        guidance_scale=cfg_scale,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=3,
        output_type="pt",
    ).images
    mended = reference_image(random_dit, scheduler.fresh(), request)
    torch.testing.assert_close(mended, bare, rtol=0, atol=1e-6)


def test_the_noise_is_scaled_and_the_sample_kept_unscaled() -> None:
    """One Euler step by hand: x + (σ' - σ)·ε from x = σ_max·noise (Karras et al., arXiv 2206.00364)."""
    scheduler = EulerDiscreteScheduler(beta_schedule="linear")
    behind = PipelineScheduler(scheduler, torch.Generator(), guided=False)
    behind.set_timesteps(4)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma, next_sigma = scheduler.sigmas[:2]
    scaled = behind.scale_model_input(noise, behind.timesteps[0])
    start = noise * scheduler.init_noise_sigma
    torch.testing.assert_close(scaled, start / (sigma**2 + 1) ** 0.5)
    epsilon = torch.ones_like(noise)
    after = behind.step(epsilon, behind.timesteps[0], scaled).prev_sample
    torch.testing.assert_close(after, start + (next_sigma - sigma) * epsilon)


def test_a_stochastic_solver_follows_the_seed(random_dit: Path) -> None:
    scheduler = solver_from_name("ddpm", load_scheduler(random_dit))
    images = [
        reference_image(random_dit, scheduler.fresh(), ReferenceRequest(seed=seed, steps=3, cfg_scale=2.0, labels=(1,)))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2], atol=1e-2)
