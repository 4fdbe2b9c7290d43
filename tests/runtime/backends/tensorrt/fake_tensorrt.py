"""A TensorRT on the host: its engines compute, through ONNX Runtime, on the memory of fake_cuda.

`fake_module("10.3.0")` has the classes, members and enumerators of the real binding of that version (api/*.json, which
record_api.py read off the wheels) and no others, and takes as many arguments as that one does: what is called but was
not there in 10.3 fails here as it would on a Jetson.

A plan is a line of JSON and an ONNX model. Contexts check what TensorRT asks for: shapes within the profile, addresses
of 256 bytes, scratch memory, one run before a capture. They scribble over their scratch memory when they run.
"""

import enum
import importlib.machinery
import json
from pathlib import Path
from types import ModuleType

from tests.runtime.backends.tensorrt.fake_base import World, restricted
from tests.runtime.backends.tensorrt.fake_builder import (
    Builder,
    IBuilderConfig,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda
from tests.runtime.backends.tensorrt.fake_runtime import (
    ICudaEngine,
    IExecutionContext,
    OnnxParserRefitter,
    Refitter,
    Runtime,
)

API = Path(__file__).parent / "api"
CLASSES = {
    cls.__name__: cls
    for cls in (
        ILogger, IProgressMonitor, INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile, ITimingCache,
        IBuilderConfig, Builder, Runtime, ICudaEngine, Refitter, OnnxParserRefitter, IExecutionContext,
    )
}  # fmt: skip


def fake_module(version: str, cuda: FakeCuda, lean: bool = False) -> ModuleType:
    """The binding of a version, as a module."""
    name = "tensorrt_lean" if lean else "tensorrt"
    api = json.loads((API / f"{name}-{version}.json").read_text())
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__version__ = api["version"]
    enums = {
        key: enum.IntEnum(key, {member: i for i, member in enumerate(members)}) for key, members in api["enums"].items()
    }
    for key, kind in enums.items():
        setattr(module, key, kind)
    if not lean:
        module.LayerType = enum.IntEnum(
            "LayerType", {"CONSTANT": 0, "SHAPE": 1, "CAST": 2, "ELEMENTWISE": 3, "IDENTITY": 4}
        )
    module.Weights = lambda values: values
    world = World(module, cuda, api["version"])
    for key, members in api["classes"].items():
        if key in CLASSES:
            setattr(module, key, restricted(CLASSES[key], members, world))
    return module
