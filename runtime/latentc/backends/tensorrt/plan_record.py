"""What a plan was built from and for, beside the plan: NAME.json, hashed like every file of an engine directory.

A plan is an executable. It is deserialised only after its hash was checked, and only on what it was built for: the same
TensorRT, GPU and compute capability, unless it was built to be compatible with others.
"""

from collections.abc import Mapping

import msgspec

from latentc.errors import BundleError
from latentc.schema import Strict

_AMPERE = (8, 0)  # the least compute capability of a hardware-compatible engine
_GPU = {"gpu": "GPU", "compute_capability": "compute capability"}


class PlanRecord(Strict, frozen=True):
    """NAME.json: how the plan NAME.plan is to be loaded, and for which shapes it was built (least, best, most)."""

    stripped: bool
    weight_streaming: int | None
    profiles: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def record_from_bytes(data: memoryview, name: str) -> PlanRecord:
    """Reads NAME.json; BundleError if it does not follow the schema."""
    try:
        return msgspec.json.decode(data, type=PlanRecord)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{name}.json does not follow the schema: {error}") from None


def refusal_of(
    theirs: Mapping[str, str], ours: Mapping[str, str], options: Mapping[str, str], lean: bool
) -> str | None:
    """Why a plan with the key `theirs`, built with `options`, cannot run where the key is `ours`; None if it can."""
    version_compatible = "version_compatible" in options
    if lean and not version_compatible:
        return "the lean runtime runs only engines that were built with --version-compatible"
    if theirs.keys() != ours.keys():
        return "they were made by another latentc"
    differ = []
    if theirs["tensorrt"] != ours["tensorrt"] and not (
        version_compatible and _runs(built=theirs["tensorrt"], here=ours["tensorrt"])
    ):
        differ.append("TensorRT")
    if "hardware_compatible" not in options:
        differ += [word for name, word in _GPU.items() if theirs[name] != ours[name]]
    elif min(_number(key["compute_capability"]) for key in (theirs, ours)) < _AMPERE:
        differ.append("compute capability")
    if theirs["machine"] != ours["machine"]:
        differ.append("machine")
    if not differ:
        return None
    return f"they are for another {' and '.join(differ)}: built for {words(theirs)}; here is {words(ours)}"


def words(key: Mapping[str, str]) -> str:
    """A key as a sentence says it."""
    return (
        f"TensorRT {key['tensorrt']} on {key['gpu']} (compute capability {key['compute_capability']}, {key['machine']})"
    )


def _runs(built: str, here: str) -> bool:
    """Version-compatible plans run on the TensorRT that built them and on later ones of the same major version."""
    one, other = _number(built), _number(here)
    return one[:1] == other[:1] and one <= other


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
