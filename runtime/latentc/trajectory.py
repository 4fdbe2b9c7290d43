"""One request as arrays: everything that the loop reads, computed before the loop begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentc.backends.protocol import Array
from latentc.noise import NormalStream
from latentc.table import SolverTable


@dataclass(frozen=True)
class Trajectory:
    """What the denoiser and decoder are given; B images, N calls, S = 1 + N + noise draws slots.

    noise       float32 [1 + noise draws, B, C, H, W]   the unit noise, then each injected draw
    per_call    name -> [N, ...]                        inputs of the denoiser that have one row for each call
    constant    name -> [...]                           inputs of the denoiser that are the same in every call
    output_row  float32 [S]
    """

    noise: npt.NDArray[np.float32]
    per_call: dict[str, Array]
    constant: dict[str, Array]
    output_row: npt.NDArray[np.float32]


def trajectory_of_labels(
    table: SolverTable, noise: npt.NDArray[np.float32], labels: Sequence[int], null_label: int, cfg_scale: float
) -> Trajectory:
    """The trajectory of a class-label model, with classifier-free guidance (arXiv 2207.12598).

    The graph sums guidance_weights[k] * output[k] over its guidance branches: null + g (cond - null) is
    g * cond + (1 - g) * null. With `cfg_scale` g <= 1 there is one branch, and half the work.
    """
    branches = [list(labels), [null_label] * len(labels)] if cfg_scale > 1.0 else [list(labels)]
    weights = [cfg_scale, 1.0 - cfg_scale] if cfg_scale > 1.0 else [1.0]
    timestep = np.broadcast_to(table.timesteps[:, None, None], (table.calls, len(branches), len(labels)))
    return Trajectory(
        noise=noise,
        per_call={"input_row": table.input_rows, "timestep": np.ascontiguousarray(timestep)},
        constant={
            "class_labels": np.array(branches, np.int64),  # [branches, B]
            "guidance_weights": np.array(weights, np.float32),  # [branches]
        },
        output_row=table.output_row,
    )


def noise_from_seed(
    seed: int, shape: tuple[int, ...], noise_draws: int, first: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """float32 [1 + noise_draws, *shape]: the draws of a diffusers pipeline with a CPU generator of `seed`.

    `first` replaces the unit noise; as in diffusers, the injected draws are then the generator's first.
    """
    stream = NormalStream(seed)
    begin = [stream.draw(shape) if first is None else first]
    return np.stack(begin + [stream.draw(shape) for _ in range(noise_draws)])
