"""`--precision int8`: the loop's graph in eight-bit integers, as far as the picture allows; all others stay float32.

Then the decoder's convolutions (export/int8/decoder.py). Text encoders, prompt and schedule graph run once a
request and stay. What is decided for the loop is export/int8's; this file gives it samples, trajectory and bounds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError

from export.calibrate import Samples, compared_inputs
from export.compile import HoistedStep, NarrowedStep
from export.int8 import Factors, Gate, Int8Report, choose, layers_of, local_errors, smoothing, write_int8
from export.int8.decoder import DecoderGate, choose_convolutions, written_decoder
from export.loop import Loop, picture_of, steps_of
from export.runner import run_model
from export.verify import Bounds, Checked


@dataclass(frozen=True)
class Chosen:
    """The decision, and what float32 gave: the picture of the trajectory, and the outputs for the last sample."""

    report: Int8Report
    factors: Factors
    picture: np.ndarray | None  # None where no trajectory is within reach
    outputs: Mapping[str, np.ndarray]


Recall = Callable[[Callable[[], Chosen]], Chosen]


def quantise(
    hoisted: HoistedStep, samples: Samples, loop: Loop | None, checked: Checked, bounds: Bounds, recall: Recall
) -> NarrowedStep:
    """Chooses by measure, and writes. Raises ParityError where no layer can be int8 within `bounds`.

    The decision is asked of `recall`, which computes it or knows it already.
    """
    wide = hoisted.graphs["denoise"]
    if not layers_of(wide):
        raise LatentcError(
            f"--precision int8: the loop of {hoisted.step.model.name} holds no matrix product with a weight that "
            "is worth quantising; export in fp32"
        )
    chosen = recall(lambda: _chosen(hoisted, samples, loop, checked, bounds))
    graphs = {**hoisted.graphs, "denoise": _written(wide, chosen.report, chosen.factors)}
    if chosen.report.decoder is not None and chosen.report.decoder.num_int8:
        graphs["decode"] = written_decoder(hoisted.graphs["decode"], chosen.report.decoder)
    return NarrowedStep(
        hoisted,
        graphs,
        half={},
        wide_outputs={"denoise": chosen.outputs},
        int8=chosen.report,
        picture=chosen.picture,
    )


def _chosen(hoisted: HoistedStep, samples: Samples, loop: Loop | None, checked: Checked, bounds: Bounds) -> Chosen:
    wide, decode = hoisted.graphs["denoise"], hoisted.graphs["decode"]
    given = samples["denoise"]
    factors = smoothing(wide, given)
    found = local_errors(wide, given, factors)
    if loop is None:
        return Chosen(choose(wide, given, factors, found, None), factors, None, found.outputs[-1])
    picture = run_model(decode, samples["decode"][0])["image"]
    inputs = compared_inputs(hoisted, checked.drawn, checked.handed_over)
    gate = Gate(
        draw=partial(picture_of, decode=decode, loop=loop),
        picture=picture,
        inputs=inputs,
        prediction=run_model(wide, inputs)["prediction"],
        psnr_db=bounds.psnr_db,
        relative_l2=bounds.relative_l2,
    )
    report = choose(wide, given, factors, found, gate)
    *_, finished = steps_of(_written(wide, report, factors), loop)
    compared = checked.drawn.inputs["decode"]
    decoder_gate = DecoderGate(
        latents={**finished, "output_row": loop.output_row},
        picture=picture,
        inputs=compared,
        image=run_model(decode, compared)["image"],
        psnr_db=bounds.psnr_db,
        relative_l2=bounds.relative_l2,
    )
    decoder = choose_convolutions(decode, samples["decode"], decoder_gate)
    return Chosen(msgspec.structs.replace(report, decoder=decoder), factors, picture, found.outputs[-1])


def _written(wide: ir.Model, report: Int8Report, factors: Factors) -> ir.Model:
    """A copy of the float32 denoise graph with the layers of `report` in int8."""
    narrow = wide.clone()
    kept = {layer.name for layer in report.kept}
    write_int8(narrow, [layer for layer in layers_of(narrow) if layer.name not in kept], factors)
    return narrow
