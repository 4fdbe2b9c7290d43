"""`--precision int8` for the decoder: its convolutions in eight bits, as far as the picture allows.

A decoder is run once, and yet costs as much as many steps of a small model: 624 GFLOP for 256² by the usual
autoencoder, where a step of DiT-S/2 with guidance takes 24. Which convolutions are int8 is decided as for the loop's
layers (export/int8/choice.py): by their own error, and then by the picture that the int8 loop and this decoder draw.
Where the picture asks for it, those stay float32 first that put most wrong into the stream they add to or are part of.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from latentc.parity import psnr_db, relative_l2

from export.int8.choice import LOCAL_BOUND, MARGIN_DB, MARGIN_SHARE, DecoderReport, KeptLayer
from export.int8.convolutions import (
    convolutions_of,
    errors_of_convolutions,
    quantise_convolutions,
    watched_values,
)
from export.int8.spans import Span, spans_of
from export.runner import Runner

# What the decoder may take of the margin that the loop's choice left above the bound.
SHARE_DB = 0.5

Sample = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DecoderGate:
    """What is compared: the latents that the int8 loop ends with, float32's picture, and the parity report's inputs."""

    latents: Sample
    picture: np.ndarray
    inputs: Sample
    image: np.ndarray  # float32's, of `inputs`
    psnr_db: float
    relative_l2: float

    def measure(self, decode: ir.Model) -> tuple[float, bool]:
        """The PSNR of the picture, and whether both bounds hold."""
        with Runner(decode) as runner:
            drawn, compared = (found["image"] for found in runner.run_all([self.latents, self.inputs]))
        psnr = psnr_db(drawn, self.picture)
        near = relative_l2(compared, self.image) <= MARGIN_SHARE * self.relative_l2
        return psnr, near and psnr >= self.psnr_db + MARGIN_DB - SHARE_DB


def choose_convolutions(decode: ir.Model, samples: Sequence[Sample], gate: DecoderGate) -> DecoderReport | None:
    """The choice, or None where the decoder has no convolution that is wide enough; `decode` is left as it was.

    samples: what spans are calibrated on, from float32. Where no choice holds the gate, all convolutions are kept.
    """
    convolutions = convolutions_of(decode.graph)
    if not convolutions:
        return None
    # The inputs of the comparison are noise, which may reach further than what a loop ends with.
    spans = spans_of(decode, watched_values(convolutions), [*samples, gate.inputs])
    errors = errors_of_convolutions(decode, spans, samples)
    spoiled = {name for name, error in errors.items() if not error.own <= LOCAL_BOUND}
    ranked = sorted(errors, key=lambda name: (name not in spoiled, -errors[name].carried))
    too_few, enough = len(spoiled) - 1, len(ranked)
    psnr: float | None = None
    count = too_few + 1
    while enough - too_few > 1:
        found, holds = gate.measure(in_eight_bits(decode, spans, set(ranked[:count])))
        if holds:
            enough, psnr = count, found
        else:
            too_few = count
        count = (too_few + enough) // 2
    bound = f"the picture shall have {gate.psnr_db:g} dB"
    kept = [
        KeptLayer(
            name,
            f"its own output is off by {errors[name].own:.3g}, the sum that this goes into by "
            f"{errors[name].carried:.3g}; {bound}",
        )
        for name in ranked[:enough]
    ]
    return DecoderReport(
        {name: error.own for name, error in errors.items()},
        {name: error.carried for name, error in errors.items()},
        {name: (span.low, span.high) for name, span in spans.items()},
        tuple(kept),
        psnr_db=psnr,
    )


def in_eight_bits(decode: ir.Model, spans: Mapping[str, Span], kept: Set[str]) -> ir.Model:
    """A copy of `decode` with all wide convolutions but `kept` in int8; weights are shared, or converted when read."""
    copy = decode.clone()
    quantise_convolutions(copy, spans, kept)
    return copy


def written_decoder(decode: ir.Model, report: DecoderReport) -> ir.Model:
    """The decoder that `report` speaks of."""
    spans = {name: Span(*ends) for name, ends in report.spans.items()}
    return in_eight_bits(decode, spans, {layer.name for layer in report.kept})
