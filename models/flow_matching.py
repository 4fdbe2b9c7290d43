"""What the pipelines of flow-matching models share: how they set their timesteps, and with which schedulers they fail.

FluxPipeline and StableDiffusion3Pipeline (diffusers 0.42.1) are written for FlowMatchEulerDiscreteScheduler. A
scheduler that takes neither `sigmas` nor `mu` (FlowMatchHeunDiscreteScheduler) makes them raise, and their img2img
pipelines ask for `scale_noise`, which DPM-Solver++ and UniPC call `add_noise`. Here such a scheduler sets its
timesteps by their number alone, and `mend_scheduler` makes the reference do the same; with a scheduler that the
pipelines can call nothing is changed.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

Setting = int | float | npt.NDArray[np.float64]

# A missing parameter; sigmas without flow sigmas; mu without dynamic shifting.
_REFUSALS = (TypeError, ValueError, AssertionError)


def resolution_shift(scheduler: SchedulerMixin, tokens: int, max_shift: float) -> float:
    """mu, linear in the number of image tokens (arXiv 2403.03206, section 5.3.2); `max_shift` is the pipeline's own."""
    config = scheduler.config
    mu: float = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", max_shift),
    )
    return mu


def takes(scheduler: SchedulerMixin, settings: dict[str, Setting]) -> bool:
    """Whether a scheduler like this one sets its timesteps by `settings`, or raises."""
    try:
        type(scheduler).from_config(scheduler.config).set_timesteps(**settings)
    except _REFUSALS:
        return False
    return True


def set_flow_timesteps(scheduler: SchedulerMixin, steps: int, settings: dict[str, Setting]) -> None:
    """As the pipeline does it, with `settings`; by the number of steps where that would raise."""
    if takes(scheduler, settings):
        scheduler.set_timesteps(**settings)
    else:
        scheduler.set_timesteps(steps)


def mend_scheduler(scheduler: SchedulerMixin, set_timesteps: Callable[[], None]) -> None:
    """Makes a pipeline set the timesteps of `scheduler` by `set_timesteps`, whatever it asks for; in place."""

    def as_the_bundle_does(
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Setting | None = None,
        mu: float | None = None,
    ) -> None:
        del scheduler.set_timesteps  # the class's own again
        set_timesteps()

    scheduler.set_timesteps = as_the_bundle_does


def name_scale_noise(scheduler: SchedulerMixin) -> None:
    """Gives a scheduler that has only `add_noise` the name that img2img pipelines of flow models call; in place."""

    def scale_noise(sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        result: Tensor = scheduler.add_noise(sample, noise, timestep)
        return result

    if not hasattr(scheduler, "scale_noise"):
        scheduler.scale_noise = scale_noise


def picture_tensor(picture: npt.NDArray[np.float32]) -> Tensor:
    """[height, width, 3] -> [1, 3, height, width], as the image processors take it."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
