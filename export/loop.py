"""The loop of the parity request on the compiler's own graphs: what each call reads, and what comes out of all of them.

Everything but the history is computed once; then any form of the denoise graph is run through the same trajectory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.trajectory import Trajectory

from export.compile import HoistedStep
from export.parity_request import parity_trajectory
from export.proof import loop_inputs
from export.runner import Runner, run_model
from export.solver_table import SolverTable
from export.write import tokenizers_of


@dataclass(frozen=True)
class Loop:
    """One trajectory: the history before the first call, and what each call reads beside it."""

    start: np.ndarray  # [slots, B, C, H, W]: the noise and its further draws
    calls: tuple[Mapping[str, np.ndarray], ...]
    output_row: np.ndarray  # [slots]


def parity_loop(hoisted: HoistedStep, table: SolverTable) -> Loop:
    """The parity request's, with what text encoders, prompt and schedule graph return for it."""
    trajectory = parity_trajectory(hoisted.step, table, tokenizers_of(hoisted.step.model))
    encoded = _encoded_texts(hoisted, trajectory)
    draws = len(trajectory.noise) - 1
    history = np.zeros((len(trajectory.output_row), *trajectory.noise.shape[1:]), np.float32)
    history[0] = trajectory.noise[0]
    history[1 + table.calls :] = trajectory.noise[1 : 1 + draws]
    calls = []
    for call in range(table.calls):
        of_call = {name: rows[call] for name, rows in trajectory.per_call.items()}
        calls.append(loop_inputs(hoisted.parts, {**trajectory.constant, **encoded, **of_call}))
    return Loop(history, tuple(calls), trajectory.output_row)


def steps_of(denoise: ir.Model, loop: Loop) -> Iterator[dict[str, np.ndarray]]:
    """Runs every call; after each, yields the inputs that it had, and last {"history": the finished one}."""
    history = loop.start.copy()
    with Runner(denoise) as runner:
        for call, known in enumerate(loop.calls):
            given = {**known, "history": history.copy()}
            inputs = {name: given[name] for name in runner.inputs}
            history[1 + call] = runner.run(inputs)["prediction"]
            yield inputs
    yield {"history": history}


def picture_of(denoise: ir.Model, decode: ir.Model, loop: Loop) -> np.ndarray:
    """What the whole trajectory draws: float32 [B, 3, f·H, f·W] in [0, 1]."""
    *_, finished = steps_of(denoise, loop)
    return run_model(decode, {**finished, "output_row": loop.output_row})["image"]


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
