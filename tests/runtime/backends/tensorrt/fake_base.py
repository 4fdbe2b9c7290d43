"""What all classes of the TensorRT on the host share: a world, and members that are those of a version."""

import enum
import functools
import re
from types import ModuleType

import numpy as np

from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda

NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
ONNX_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 9: "BOOL"}


class World:
    """What the objects of one module share, and the knobs that tests turn."""

    def __init__(self, module: ModuleType, cuda: FakeCuda, version: str) -> None:
        self.module, self.cuda, self.version = module, cuda, version
        self.builds: list[dict[str, object]] = []  # the configuration of every build
        self.build_error: str | None = None
        self.shares_profiles = "FASTER_DYNAMIC_SHAPES_0805" not in module.PreviewFeature.__members__  # not on 8.6
        module.world = self

    def enum(self, name: str, member: str) -> enum.IntEnum:
        return getattr(self.module, name).__members__[member]


class Base:
    """What every fake has: its world."""

    world: World


def restricted(cls: type, members: dict[str, str], world: World) -> type:
    """`cls` with the members of the real class only."""
    body: dict[str, object] = {"world": world}
    for name in dir(cls):
        if name.startswith("_") or name == "world":
            continue
        if name not in members:
            body[name] = Absent(cls.__name__, name)
        elif callable(getattr(cls, name)) and not isinstance(getattr(cls, name), type):
            body[name] = counted(getattr(cls, name), members[name])
    return type(cls.__name__, (cls,), body)


class Absent:
    """A member that this version does not have."""

    def __init__(self, owner: str, name: str) -> None:
        self.text = f"{owner} of this version has no {name}"

    def __get__(self, instance: object, owner: type) -> object:
        raise AttributeError(self.text)

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(self.text)


def counted(function, signature: str):
    """`function`, refusing numbers of arguments that the real signature does not take."""
    inside = re.fullmatch(r"\w+\((.*)\)(?: -> .*)?", signature)
    if inside is None or "*args" in signature:
        return function
    arguments = [part for part in re.split(r",\s*(?![^\[<(]*[\]>)])", inside[1]) if part]
    needed = sum("=" not in part for part in arguments) - 1
    most = len(arguments) - 1

    @functools.wraps(function)
    def checked(self, *given, **named):
        if not needed <= len(given) + len(named) <= most:
            raise TypeError(f"{signature} was given {len(given) + len(named)} arguments")
        return function(self, *given, **named)

    return checked
