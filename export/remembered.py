"""Results of the expensive phases, kept in the stage, so that a killed export need not compute them again."""

from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import safetensors.numpy
from latentc import schema

from export.eight_bit import Chosen
from export.int8 import Int8Report
from export.precision import Measured, WeightFit
from export.stage import Stage
from export.verify import Verified

Nested = Mapping[str, Mapping[str, np.ndarray]]


class _Measured(msgspec.Struct, frozen=True):
    peaks: dict[str, float]
    fits: tuple[WeightFit, ...]


def remembered_measure(stage: Stage, graph: str, measure: Callable[[], Measured]) -> Measured:
    """What calibration found in `graph`."""
    key = f"calibration-{graph}"
    notes, outputs = stage.recall(f"{key}.json"), stage.recall(f"{key}.safetensors")
    if notes is not None and outputs is not None:
        known = msgspec.json.decode(notes, type=_Measured)
        return Measured(known.peaks, known.fits, safetensors.numpy.load(outputs))
    found = measure()
    stage.remember(f"{key}.safetensors", _tensors(found.outputs))
    stage.remember(f"{key}.json", msgspec.json.encode(_Measured(dict(found.peaks), found.fits)))
    return found


def remembered_choice(stage: Stage, choose: Callable[[], Chosen]) -> Chosen:
    """Which layers are int8, and what float32 gave."""
    report, arrays = stage.recall("int8.json"), stage.recall("int8.safetensors")
    if report is not None and arrays is not None:
        known = safetensors.numpy.load(arrays)
        factors, outputs = (
            {name.removeprefix(kind): array for name, array in known.items() if name.startswith(kind)}
            for kind in ("factors/", "output/")
        )
        return Chosen(msgspec.json.decode(report, type=Int8Report), factors, known.get("picture"), outputs)
    chosen = choose()
    tensors = {f"output/{name}": array for name, array in chosen.outputs.items()}
    tensors |= {f"factors/{name}": array for name, array in chosen.factors.items()}
    tensors |= {} if chosen.picture is None else {"picture": chosen.picture}
    stage.remember("int8.safetensors", _tensors(tensors))
    stage.remember("int8.json", msgspec.json.encode(chosen.report))
    return chosen


def remembered_arrays(stage: Stage, name: str, compute: Callable[[], Nested]) -> Nested:
    """Arrays of two levels: `name` -> {part: {tensor: array}}."""
    known = stage.recall(f"{name}.safetensors")
    if known is not None:
        found: dict[str, dict[str, np.ndarray]] = {}
        for key, array in safetensors.numpy.load(known).items():
            part, _, tensor = key.partition("/")
            found.setdefault(part, {})[tensor] = array
        return found
    computed = compute()
    flat = {f"{part}/{tensor}": array for part, arrays in computed.items() for tensor, array in arrays.items()}
    stage.remember(f"{name}.safetensors", _tensors(flat))
    return computed


def remembered_verification(stage: Stage, verify: Callable[[], Verified]) -> Verified:
    """A report whose bounds hold, with its references."""
    parity, references = stage.recall("parity.json"), stage.recall("parity.safetensors")
    if parity is not None and references is not None:
        report = msgspec.json.decode(parity, type=schema.Parity)
        return Verified(report, safetensors.numpy.load(references))
    verified = verify()
    stage.remember("parity.safetensors", _tensors(verified.references))
    stage.remember("parity.json", msgspec.json.encode(verified.parity))
    return verified


def _tensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    data: bytes = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return data
