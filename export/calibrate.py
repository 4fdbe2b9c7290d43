"""Calibration inputs for half precision: the model's own trajectory, in float32.

Islands beyond the known ones are found on what the loop really sees: every call of the parity
request's trajectory, from pure noise to the finished latents.
"""

from collections.abc import Mapping

import numpy as np

from export.compile import HoistedStep
from export.proof import Runner, loop_inputs
from export.solver_table import SolverTable
from export.verify import parity_trajectory

MAX_SAMPLES = 8  # calls of a long trajectory are alike


def calibration_inputs(hoisted: HoistedStep, table: SolverTable) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """Inputs of the denoise graph at calls spread over the trajectory, and of the decode graph behind it."""
    trajectory = parity_trajectory(hoisted.step, table)
    draws = len(trajectory.noise) - 1
    history = np.zeros((len(trajectory.output_row), *trajectory.noise.shape[1:]), np.float32)
    history[0] = trajectory.noise[0]
    history[1 + table.calls :] = trajectory.noise[1 : 1 + draws]
    kept = set(np.linspace(0, table.calls - 1, min(table.calls, MAX_SAMPLES)).round().astype(int).tolist())
    samples: list[Mapping[str, np.ndarray]] = []
    with Runner(hoisted.parts.graphs["denoise"]) as denoise:
        for call in range(table.calls):
            of_call = {name: rows[call] for name, rows in trajectory.per_call.items()}
            known = loop_inputs(hoisted.parts, {**trajectory.constant, **of_call, "history": history.copy()})
            inputs = {name: known[name] for name in denoise.inputs}
            if call in kept:
                samples.append(inputs)
            history[1 + call] = denoise.run(inputs)["prediction"]
    return {"denoise": samples, "decode": [{"history": history, "output_row": trajectory.output_row}]}
