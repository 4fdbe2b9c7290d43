"""Calibration inputs for half precision: the model's own trajectory, in float32.

Islands beyond the known ones are found on what the loop really sees: every call of the parity
request's trajectory, from pure noise to the finished latents.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from latentc.trajectory import Trajectory

from export.compile import HoistedStep
from export.parity_inputs import Drawn
from export.parity_request import parity_trajectory
from export.proof import handed_over, loop_inputs, taken
from export.reach import Reach
from export.runner import Runner, run_model
from export.solver_table import SolverTable
from export.write import tokenizers_of

MAX_SAMPLES = 8  # calls of a long trajectory are alike


def calibration_inputs(
    hoisted: HoistedStep,
    table: SolverTable,
    drawn: Drawn,
    given: Mapping[str, Mapping[str, np.ndarray]],
    reach: Reach,
) -> dict[str, Sequence[Mapping[str, np.ndarray]]]:
    """Inputs of the denoise graph at calls spread over the trajectory, and of all that runs before and after it.

    Where no trajectory is within reach, the graphs are given what they are compared on: the denoiser its first step,
    from noise, with texts that the encoders encoded. `given` is what prompt and schedule graph return for that.
    """
    if not reach.runs_trajectory:
        known = handed_over(drawn.inputs["denoise"], given)
        found = {name: (drawn.inputs[name],) for name in hoisted.around}
        return found | {"denoise": (taken(hoisted.parts.graphs["denoise"], known),)}
    model = hoisted.step.model
    trajectory = parity_trajectory(hoisted.step, table, tokenizers_of(model))
    texts: dict[str, Sequence[Mapping[str, np.ndarray]]] = {
        encoder.name: [drawn.inputs[encoder.name]] for encoder in model.text_encoders
    }
    encoded = _encoded_texts(hoisted, trajectory)
    draws = len(trajectory.noise) - 1
    history = np.zeros((len(trajectory.output_row), *trajectory.noise.shape[1:]), np.float32)
    history[0] = trajectory.noise[0]
    history[1 + table.calls :] = trajectory.noise[1 : 1 + draws]
    kept = set(np.linspace(0, table.calls - 1, min(table.calls, MAX_SAMPLES)).round().astype(int).tolist())
    samples: list[Mapping[str, np.ndarray]] = []
    with Runner(hoisted.parts.graphs["denoise"]) as denoise:
        for call in range(table.calls):
            of_call = {name: rows[call] for name, rows in trajectory.per_call.items()}
            known = loop_inputs(hoisted.parts, {**trajectory.constant, **encoded, **of_call, "history": history.copy()})
            inputs = {name: known[name] for name in denoise.inputs}
            if call in kept:
                samples.append(inputs)
            history[1 + call] = denoise.run(inputs)["prediction"]
    around: dict[str, Sequence[Mapping[str, np.ndarray]]] = {**texts, "denoise": samples}
    around["decode"] = [{"history": history, "output_row": trajectory.output_row}]
    if "encode" in hoisted.graphs:
        around["encode"] = [drawn.inputs["encode"]]
    return around


def _encoded_texts(hoisted: HoistedStep, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """What the text encoders return for the trajectory: name -> [branches, B, …]."""
    shape = (len(trajectory.constant["guidance_weights"]), trajectory.noise.shape[1])
    found: dict[str, np.ndarray] = {}
    for batch in trajectory.texts:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        for name, rows in run_model(hoisted.around[batch.graph], given).items():
            values = found.setdefault(name, np.zeros((*shape, *rows.shape[1:]), rows.dtype))
            for row, places in zip(rows, batch.places, strict=True):
                for place in places:
                    values[place] = row
    return found
