"""Calibration inputs for half precision and int8: the model's own trajectory, in float32.

What a precision does is measured on what the loop really sees: every call of the parity request's trajectory, from pure
noise to the finished latents.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from export.compile import HoistedStep
from export.loop import Loop, steps_of
from export.parity_inputs import Drawn
from export.proof import handed_over, taken

Samples = Mapping[str, Sequence[Mapping[str, np.ndarray]]]  # by graph
MAX_SAMPLES = 8  # calls of a long trajectory are alike


def calibration_inputs(
    hoisted: HoistedStep,
    loop: Loop | None,
    drawn: Drawn,
    given: Mapping[str, Mapping[str, np.ndarray]],
) -> Samples:
    """Inputs of the denoise graph at calls spread over the trajectory, and of all that runs before and after it.

    Where no trajectory is within reach (`loop` is None), the graphs are given what they are compared on: the denoiser
    its first step, from noise, with texts that the encoders encoded. `given` is what prompt and schedule graph return
    for that.
    """
    if loop is None:
        found: dict[str, Sequence[Mapping[str, np.ndarray]]] = {n: (drawn.inputs[n],) for n in hoisted.around}
        return found | {"denoise": (compared_inputs(hoisted, drawn, given),)}
    around: dict[str, Sequence[Mapping[str, np.ndarray]]] = {
        encoder.name: [drawn.inputs[encoder.name]] for encoder in hoisted.step.model.text_encoders
    }
    calls = len(loop.calls)
    kept = set(np.linspace(0, calls - 1, min(calls, MAX_SAMPLES)).round().astype(int).tolist())
    *_, finished = steps = [
        values
        for call, values in enumerate(steps_of(hoisted.parts.graphs["denoise"], loop))
        if call in kept or call == calls
    ]
    around["denoise"] = steps[:-1]
    around["decode"] = [{**finished, "output_row": loop.output_row}]
    if "encode" in hoisted.graphs:
        around["encode"] = [drawn.inputs["encode"]]
    return around


def compared_inputs(
    hoisted: HoistedStep, drawn: Drawn, given: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What the denoise graph is compared with torch on."""
    return taken(hoisted.parts.graphs["denoise"], handed_over(drawn.inputs["denoise"], given))
