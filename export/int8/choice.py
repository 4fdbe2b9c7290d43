"""Which layers stay in float32: those whose own output int8 spoils, and as many more as the picture needs.

A layer's own error decides alone where no trajectory is within reach. Else the whole trajectory is drawn in int8 and
compared with float32's; while the prediction or the picture is too far off, the layers are ranked by what each does to
the prediction when it alone is int8, and the fewest of the worst are kept that help, by bisection. That is a search
over one order, no optimum: two errors may cancel. What is chosen was drawn, and held.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx_ir as ir
from latentc.errors import ParityError
from latentc.parity import psnr_db, relative_l2

from export.int8.errors import LocalErrors
from export.int8.layers import layers_of
from export.int8.nodes import write_int8
from export.int8.smoothing import Factors
from export.runner import Runner

LOCAL_BOUND = 0.1  # relative L2 of a layer's own output; a layer of a usual network is at 0.01 to 0.04
# Beyond the bound: a trajectory magnifies what another order of sums changes. Between ONNX Runtime's optimised graph
# and the same graph node by node (2e-7 apart in one step) a picture of emoji-dit had 1.6 dB more or less.
MARGIN_DB = 2.0
MARGIN_SHARE = 0.9  # of the bound of the prediction, likewise
EFFECT_SAMPLES = 2  # on which layers are ranked: the first and the last


class KeptLayer(msgspec.Struct, frozen=True):
    """A layer in float32, and why."""

    name: str
    reason: str


class DecoderReport(msgspec.Struct, frozen=True):
    """What was decided for the decoder's convolutions: errors are relative L2 of their own outputs."""

    errors: dict[str, float]
    carried: dict[str, float]  # of the sum that an output goes into, by itself or with its branch
    spans: dict[str, tuple[float, float]]  # by value: what eight bits cover
    kept: tuple[KeptLayer, ...]
    psnr_db: float | None  # of the pictures by loop and decoder in int8; None if all convolutions are kept

    @property
    def num_int8(self) -> int:
        return len(self.errors) - len(self.kept)


class Int8Report(msgspec.Struct, frozen=True):
    """What was decided and measured; errors are relative L2."""

    local: dict[str, float]  # by layer, in the graph's order: of its own output, the largest of all samples
    effects: dict[
        str, float
    ]  # by layer: of the prediction, with this layer alone in int8; empty if none had to be ranked
    kept: tuple[KeptLayer, ...]
    prediction: float | None = None  # of what was chosen, on the inputs of the parity report
    psnr_db: float | None = None  # of the pictures of the whole trajectory
    decoder: DecoderReport | None = None  # None: it has no convolution to choose, or no trajectory was within reach

    @property
    def num_int8(self) -> int:
        return len(self.local) - len(self.kept)


@dataclass(frozen=True)
class Gate:
    """The whole trajectory and the inputs of the parity report, with what float32 makes of them, and the bounds."""

    draw: Callable[[ir.Model], np.ndarray]  # a denoise graph -> the pictures of the trajectory
    picture: np.ndarray
    inputs: Mapping[str, np.ndarray]
    prediction: np.ndarray
    psnr_db: float
    relative_l2: float


def choose(
    model: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    factors: Factors,
    found: LocalErrors,
    gate: Gate | None,
) -> Int8Report:
    """`model` is the float32 denoise graph and is left as it was; `found` is what `local_errors` says of `samples`.

    Raises ParityError if no layer can be int8 within the gate's bounds.
    """
    kept = {
        name: f"its own output is off by {error:.3g}, more than {LOCAL_BOUND:g}"
        for name, error in found.errors.items()
        if not error <= LOCAL_BOUND
    }
    if len(kept) == len(found.errors):
        raise ParityError(_none_left(found, "a layer's own output may be off by", f"{LOCAL_BOUND:g}"))
    if gate is None:
        return _report(found, {}, kept)
    quality = _quality(model, factors, kept.keys(), gate)
    effects: dict[str, float] = {}
    if not quality.holds:
        effects = prediction_errors(model, samples, factors, found, kept.keys())
        ranked = sorted(effects, key=lambda name: -effects[name])

        def with_worst(count: int) -> dict[str, str]:
            why = f"the picture shall have {gate.psnr_db:g} dB, the prediction be off by {gate.relative_l2:g} at most"
            return kept | {n: f"alone it puts the prediction off by {effects[n]:.3g}; {why}" for n in ranked[:count]}

        too_few, enough = 0, len(ranked)
        while enough - too_few > 1:
            count = (too_few + enough) // 2
            tried = _quality(model, factors, with_worst(count).keys(), gate)
            if tried.holds:
                enough, quality = count, tried
            else:
                too_few = count
        if enough == len(ranked):
            bounds = f"{gate.psnr_db + MARGIN_DB:g} dB and {MARGIN_SHARE * gate.relative_l2:.3g}"
            raise ParityError(_none_left(found, "the picture must have and the prediction may be off by", bounds))
        kept = with_worst(enough)
    return _report(found, effects, kept, quality)


def prediction_errors(
    model: ir.Model,
    samples: Sequence[Mapping[str, np.ndarray]],
    factors: Factors,
    found: LocalErrors,
    leave: Set[str],
) -> dict[str, float]:
    """By layer outside `leave`: the largest relative L2 error of the prediction with this layer alone in int8."""
    looked_at = sorted({0, len(samples) - 1})[:EFFECT_SAMPLES]
    errors: dict[str, float] = {}
    for name in found.errors:
        if name in leave:
            continue
        with Runner(_in_int8(model, factors, found.errors.keys() - {name})) as runner:
            outputs = runner.run_all([samples[index] for index in looked_at])
        errors[name] = max(
            relative_l2(values["prediction"], found.outputs[index]["prediction"])
            for values, index in zip(outputs, looked_at, strict=True)
        )
    return errors


@dataclass(frozen=True)
class _Quality:
    prediction: float
    psnr_db: float
    holds: bool


def _quality(model: ir.Model, factors: Factors, kept: Set[str], gate: Gate) -> _Quality:
    chosen = _in_int8(model, factors, kept)
    with Runner(chosen) as runner:
        prediction = relative_l2(runner.run(gate.inputs)["prediction"], gate.prediction)
    if not prediction <= MARGIN_SHARE * gate.relative_l2:
        return _Quality(prediction, 0.0, False)
    psnr = psnr_db(gate.draw(chosen), gate.picture)
    return _Quality(prediction, psnr, psnr >= gate.psnr_db + MARGIN_DB)


def _in_int8(model: ir.Model, factors: Factors, kept: Set[str]) -> ir.Model:
    """A copy of `model` with all layers but `kept` in int8; weights are shared."""
    copy = model.clone()
    write_int8(copy, [layer for layer in layers_of(copy) if layer.name not in kept], factors)
    return copy


def _report(
    found: LocalErrors, effects: Mapping[str, float], kept: Mapping[str, str], quality: _Quality | None = None
) -> Int8Report:
    layers = tuple(KeptLayer(name, kept[name]) for name in found.errors if name in kept)
    measured = (None, None) if quality is None else (quality.prediction, quality.psnr_db)
    return Int8Report(dict(found.errors), dict(effects), layers, *measured)


def _none_left(found: LocalErrors, what: str, bound: str) -> str:
    return (
        f"--precision int8: none of the {len(found.errors)} layers can be int8 ({what} {bound}); give --min-psnr and "
        "--rtol other bounds, or export in fp32"
    )
