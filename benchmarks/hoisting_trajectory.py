"""What half precision costs after a whole trajectory of a small DiT, through the compiler's own phases.

The loop is the runtime's: history, input rows and output row of the solver's table (DESIGN: the loop). Errors are
relative L2 distances of the final latents from those of the float32 graphs; every float16 result is rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from latentc.parity import relative_l2

from benchmarks.hoisting_dit import dit_net
from benchmarks.hoisting_half import Narrowing, Source, narrowed
from benchmarks.hoisting_trace import round_to_bfloat16, spread_zeros
from export.calibrate import calibration_inputs
from export.compile import HoistedStep, clean_graphs, hoist
from export.parity_inputs import drawn_inputs
from export.parity_request import parity_trajectory
from export.precision import with_every_result_rounded
from export.proof import Parts, loop_inputs
from export.reach import DEFAULT_MEMORY_BYTES, reach_of
from export.runner import Runner
from export.solver_table import SolverTable, table_from_solver
from export.solvers import own_solver
from export.step import FusedStep, fuse_step
from export.trace import trace_step
from models.autoencoder import KLDecoder
from models.dit.modules import DiTDenoiser
from models.latent_diffusion import CLASS_LABELS, Labels, LatentDiffusion
from models.timesteps import store_timestep_frequencies


@dataclass(frozen=True)
class TrajectoryErrors:
    """Final latents of one model after `steps` steps."""

    model: str
    weights: Source
    solver: str
    steps: int
    cfg_scale: float
    parity: float  # hoisted against whole, float32
    everything_whole: float
    everything_hoisted: float
    islands_whole: float
    islands_hoisted: float


def trajectory_errors(
    weights: Source, *, steps: int, heads: int = 4, layers: int = 4, size: int = 16
) -> TrajectoryErrors:
    """The errors of a DiT with random weights, `heads` heads of 32, in a trajectory of `steps` steps."""
    step = fuse_step(small_dit(weights, heads=heads, layers=layers, size=size))
    table = table_from_solver(own_solver(step.model.scheduler), steps)
    reach = reach_of(step, DEFAULT_MEMORY_BYTES, encode=False)
    inputs = drawn_inputs(step, reach, first_timestep=501.0).for_phases()
    whole = clean_graphs(trace_step(step), "onnxruntime", inputs, reach)
    hoisted = hoist(whole, steps, inputs["denoise"], flops_per_byte=200.0, reach=reach)
    expected = final_latents(whole.parts, step, table)

    def error(compiled: HoistedStep, narrowing: Narrowing) -> float:
        return relative_l2(final_latents(half_parts(compiled, table, narrowing), step, table), expected)

    return TrajectoryErrors(
        model=step.model.name,
        weights=weights,
        solver=table.solver.name,
        steps=steps,
        cfg_scale=step.model.default_cfg_scale,
        parity=relative_l2(final_latents(hoisted.parts, step, table), expected),
        everything_whole=error(whole, "everything"),
        everything_hoisted=error(hoisted, "everything"),
        islands_whole=error(whole, "islands"),
        islands_hoisted=error(hoisted, "islands"),
    )


def half_parts(compiled: HoistedStep, table: SolverTable, narrowing: Narrowing) -> Parts:
    """The parts with the loop in half precision, calibrated on the trajectory, each result rounded."""
    samples: Sequence[dict[str, npt.NDArray[np.generic]]] = [
        dict(sample) for sample in calibration_inputs(compiled, table)["denoise"]
    ]
    loop = with_every_result_rounded(narrowed(compiled.parts.graphs["denoise"], list(samples), narrowing))
    return replace(compiled.parts, graphs={**compiled.parts.graphs, "denoise": loop})


def final_latents(parts: Parts, step: FusedStep, table: SolverTable) -> npt.NDArray[np.float32]:
    """[b, C, H, W] after all calls: the parity request of the compiler, two labels with guidance."""
    request = parity_trajectory(step, table, {})
    history = np.zeros((len(request.output_row), *request.noise.shape[1:]), np.float32)  # [slots, b, C, H, W]
    history[0], history[1 + table.calls :] = request.noise[0], request.noise[1:]
    with Runner(parts.graphs["denoise"]) as denoise:
        for call in range(table.calls):
            of_call = {name: rows[call] for name, rows in request.per_call.items()}
            known = loop_inputs(parts, {**request.constant, **of_call, "history": history})
            history[1 + call] = denoise.run(known)["prediction"]
    latents: npt.NDArray[np.float32] = np.tensordot(request.output_row, history, axes=1)
    return latents


def small_dit(weights: Source, *, heads: int, layers: int, size: int) -> LatentDiffusion:
    """A pipeline with random weights as the DiT family would load it; the decoder is a stub of one level."""
    torch.manual_seed(0)
    net = dit_net(heads=heads, head_dim=32, layers=layers, size=size).eval()
    spread_zeros(net)
    if weights == "bfloat16":
        round_to_bfloat16(net)
    store_timestep_frequencies(net)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1).eval()
    return LatentDiffusion(
        name=f"DiT, {layers} blocks of {heads * 32}",
        family="dit",
        pipeline="DiTPipeline",
        denoiser=DiTDenoiser(net),
        decoder=KLDecoder(vae),
        conditioning=(CLASS_LABELS,),
        scheduler=DPMSolverMultistepScheduler(),
        latent_shape=(4, size, size),
        image_shape=(3, size, size),
        guided_channels=4,
        labels=Labels({"first": 1, "second": 7}, 1000),
        default_steps=20,
        default_cfg_scale=4.0,
    )
