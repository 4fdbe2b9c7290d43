"""What half precision costs one step, with the schedule in the loop and out of it.

Two ways to narrow, each on the whole step and on the hoisted loop:

    everything   every node that ONNX gives a half form, as a converter without rules does; inputs are rounded too
    islands      export/precision: float32 where a rule or the calibration asks for it

Every float16 result is rounded (export/precision/rounding.py); the prologue is float32, as the compiler writes it.
The error is the relative L2 distance from the float32 whole, the root mean square over a request's timesteps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from latentc.parity import relative_l2

from benchmarks.hoisting_denoiser import Denoiser
from benchmarks.hoisting_dit import dit
from benchmarks.hoisting_models import flux, pixart, sd3, unet
from export.hoist import SCHEDULE_ROW, CostModel, Feed, Partition, partition
from export.precision import to_half, with_every_result_rounded
from export.precision.casts import write_half
from export.precision.rules import island_reasons
from export.runner import Runner, run_model

Arrays = dict[str, npt.NDArray[np.generic]]
Narrowing = Literal["everything", "islands"]
Source = Literal["float32", "bfloat16"]
NO_HALF_FORM = "ONNX has no half-precision form"  # how island_reasons begins where there is no choice
SAMPLES = 6


@dataclass(frozen=True)
class HalfErrors:
    """One small model with weights of one source."""

    model: str
    weights: Source
    parity: float  # hoisted against whole, float32, the worst of the samples
    everything_whole: float
    everything_hoisted: float
    islands_whole: float
    islands_hoisted: float


def half_errors(denoiser: Denoiser, graph: ir.Model, weights: Source) -> HalfErrors:
    """Parity, and the four errors, of `graph`, which is `denoiser` with random weights of that source."""
    parts = partition(graph, denoiser.classes, CostModel(denoiser.dims), check_rows=False)
    samples = sample_inputs(denoiser)
    loop_samples = [loop_inputs(parts, sample) for sample in samples]
    expected = outputs_of(graph, samples)
    hoisted = outputs_of(parts.denoise, loop_samples)

    def error(model: ir.Model, inputs: list[Arrays], narrowing: Narrowing) -> float:
        narrow = with_every_result_rounded(narrowed(model, inputs, narrowing))
        return root_mean_square(outputs_of(narrow, inputs), expected)

    return HalfErrors(
        model=denoiser.name,
        weights=weights,
        parity=max(relative_l2(a, b) for a, b in zip(hoisted, expected, strict=True)),
        everything_whole=error(graph, samples, "everything"),
        everything_hoisted=error(parts.denoise, loop_samples, "everything"),
        islands_whole=error(graph, samples, "islands"),
        islands_hoisted=error(parts.denoise, loop_samples, "islands"),
    )


def narrowed(model: ir.Model, samples: list[Arrays], narrowing: Narrowing) -> ir.Model:
    """A copy of `model` in half precision."""
    half = model.clone()
    if narrowing == "islands":
        taken = [value.name or "" for value in half.graph.inputs]
        return to_half(half, [{name: sample[name] for name in taken} for sample in samples]).model
    wide = {node for node, reason in island_reasons(half.graph, []).items() if reason.startswith(NO_HALF_FORM)}
    write_half(half.graph, wide)
    return half


def sample_inputs(denoiser: Denoiser) -> list[Arrays]:
    """Inputs at timesteps from late to early; none is a round number, which half would hold exactly."""
    torch.manual_seed(3)
    samples = []
    for share in np.linspace(0.0173, 0.9831, SAMPLES):
        example = {name: value.numpy() for name, value in denoiser.examples().items()}
        timestep = np.full_like(example["timestep"], share * denoiser.timestep_scale)
        samples.append({**example, "timestep": timestep})
    return samples


def loop_inputs(parts: Partition, sample: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    """What the loop reads in one step: `sample`, and what prompt and schedule graph make of it."""
    known = dict(sample)
    if parts.prompt is not None:
        known |= run_model(parts.prompt, known)
    if parts.schedule is not None:
        stacked = [item.name for item in parts.layout.schedule_inputs if item.feed is Feed.STACK]
        fed = dict(known)
        if parts.layout.rows_per_step == "1":  # one row for the whole batch
            fed |= {name: known[name][(slice(0, 1),) * known[name].ndim] for name in stacked}
        known[SCHEDULE_ROW] = run_model(parts.schedule, fed)["rows"]
    return known


def outputs_of(model: ir.Model, samples: list[Arrays]) -> list[npt.NDArray[np.generic]]:
    """The one output of `model` for each sample."""
    with Runner(model) as runner:
        return [next(iter(runner.run(sample).values())) for sample in samples]


def root_mean_square(actual: list[npt.NDArray[np.generic]], expected: list[npt.NDArray[np.generic]]) -> float:
    """Of the relative errors of the pairs."""
    errors = [relative_l2(a, b) for a, b in zip(actual, expected, strict=True)]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def small_denoisers() -> tuple[Denoiser, ...]:
    """The five architectures at sizes that run in a second; FLUX's depth is that of the first measurement."""
    return (
        dit("DiT, 4 blocks of 128", heads=4, head_dim=32, layers=4, size=16),
        flux("FLUX, 2 + 4 blocks of 128", double=2, single=4, heads=4, head_dim=32, text=(12, 64), pooled=32, side=8),
        sd3("SD3, 4 blocks of 128", layers=4, heads=4, head_dim=32, size=16, text=(12, 64), pooled=32),
        pixart("PixArt, 4 blocks of 128", layers=4, heads=4, head_dim=32, size=16, text=(12, 64)),
        unet("U-Net, 32 and 64 channels", channels=(32, 64), layers=1, heads=4, size=16, text=(12, 64)),
    )
