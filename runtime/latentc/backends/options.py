"""What `latentc build` can be told about the engines that it makes; a backend refuses what it does not have."""

import re
from dataclasses import dataclass, fields

from latentc.errors import RequestError

AUTOMATIC = -1  # weight_streaming: the budget is TensorRT's own choice


@dataclass(frozen=True)
class EngineOptions:
    """The options of a build. None, False and () are "not given"."""

    workspace: int | None = None  # bytes of scratch memory that a kernel may take
    opt_level: int | None = None  # 0 (quick build) to 5 (quick engine)
    version_compatible: bool = False  # newer TensorRT of the same major version, and the lean runtime, may run it
    hardware_compatible: bool = False  # every GPU from Ampere on may run it
    strip_weights: bool = False  # the plan holds no weights; they come from the bundle when it is loaded
    weight_streaming: int | None = None  # bytes of weights that stay on the GPU; the others come from the host
    batch: int | None = None  # the most pictures of one request
    sizes: tuple[tuple[int, int], ...] = ()  # width, height in pixels: the engines are for these and all between

    prologue: str = ""  # "cpu": text, prompt and schedule graphs stay with ONNX Runtime on the CPU

    def given(self) -> list[str]:
        """The flags that were given, as the user wrote them."""
        return [
            "--" + {"sizes": "size"}.get(field.name, field.name).replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]

    def record(self) -> dict[str, str]:
        """What an engine depends on, for its record: the options that were given."""
        return {
            field.name: str(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }


_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def num_bytes_of(flag: str, text: str) -> int:
    """512MiB, 4GB or 1000000 as a number; RequestError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?|)b?", text.lower(), re.ASCII)
    if found is None or float(found[1]) <= 0:
        raise RequestError(f"{flag} {text} is no size; give one such as 512MiB or 4GB")
    return int(float(found[1]) * _UNITS[found[2]])


def size_of(text: str) -> tuple[int, int]:
    """Width and height of 768x512; RequestError for anything else."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
    if found is None or "0" in (found[1], found[2]):
        raise RequestError(f"--size {text} is no size; give one such as 768x512")
    return int(found[1]), int(found[2])
