"""A TensorRT on the host: its engines compute, through ONNX Runtime, on the memory of fake_cuda.

`fake_module("10.3.0")` has the classes, members and enumerators of the real binding of that version (api/*.json, which
record_api.py read off the wheels) and no others, and takes as many arguments as that one does: what is called but was
not there in 10.3 fails here as it would on a Jetson.

A plan is a line of JSON and an ONNX model. Contexts check what TensorRT asks for: shapes within the profile, addresses
of 256 bytes, scratch memory, one run before a capture. They scribble over their scratch memory when they run.
"""

import enum
import functools
import importlib.machinery
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
from latentc.backends.onnxruntime import OnnxRuntimeBackend

from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda

API = Path(__file__).parent / "api"
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
ONNX_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 9: "BOOL"}


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


class ILogger(Base):
    Severity = enum.IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

    def log(self, severity, msg):
        raise NotImplementedError


class IProgressMonitor(Base):
    def phase_start(self, phase_name, parent_phase, num_steps): ...
    def step_complete(self, phase_name, step): ...
    def phase_finish(self, phase_name): ...


class Tensor:
    def __init__(self, name, dtype, is_shape_tensor=False):
        self.name, self.dtype, self.is_shape_tensor = name, dtype, is_shape_tensor


class Layer:
    """A layer of a weakly typed network; remembers what it was pinned to."""

    def __init__(self, kind, outputs):
        self.type, self.outputs, self.num_outputs = kind, outputs, len(outputs)
        self.output_types, self.precision = {}, None

    def get_output(self, index):
        return self.outputs[index]

    def set_output_type(self, index, dtype):
        self.output_types[index] = dtype


class INetworkDefinition(Base):
    def __init__(self, flags):
        self.creation_flags, self.model, self.layers = flags, None, []

    @property
    def num_inputs(self):
        return len(self.model.graph.input)

    def get_input(self, index):
        return Tensor(self.model.graph.input[index].name, None)

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class ParserError(Base):
    def __init__(self, number, node, text):
        self.number, self.at, self.text = number, node, text

    def node(self):
        return self.number

    def desc(self):
        return self.text

    def node_name(self):
        return self.at.name

    def node_operator(self):
        return self.at.op_type


class OnnxParser(Base):
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    def parse(self, model, path=None):
        self.network.model = proto = loaded(model, path)
        for number, node in enumerate(proto.graph.node):
            if node.domain == "unknown":
                self.errors.append(self.world.module.ParserError(number, node, f"no importer for {node.op_type}"))
        known = {
            value.name: value.type.tensor_type.elem_type for value in (*proto.graph.value_info, *proto.graph.output)
        }
        data_type, kinds = self.world.module.DataType.__members__, self.world.module.LayerType
        for node in proto.graph.node:
            kind = kinds.CAST if node.op_type == "Cast" else kinds.ELEMENTWISE
            outputs = [Tensor(name, data_type[self._kind(known.get(name, 1))]) for name in node.output]
            self.network.layers.append(Layer(kind, outputs))
        return not self.errors

    def _kind(self, element):
        return "INT32" if element == 7 else ONNX_TYPES.get(element, "FLOAT")  # the parser of 8.6 narrows

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]


def loaded(model, path) -> onnx.ModelProto:
    """The model with its weights, read beside `path`."""
    proto = onnx.load_model_from_string(bytes(model))
    if path:
        onnx.load_external_data_for_model(proto, str(Path(path).parent))
    return proto


class IOptimizationProfile(Base):
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        assert all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)), (input, min, opt, max)
        self.shapes[input] = (list(min), list(opt), list(max))


class ITimingCache(Base):
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data or b"timings"


class IBuilderConfig(Base):
    def __init__(self):
        self.set_flags, self.profile, self.cache = {"TF32"}, None, None
        self.pools, self.builder_optimization_level, self.hardware_compatibility_level = {}, None, None
        self.monitor = None
        self.previews = {}

    def set_preview_feature(self, feature, enable):
        self.previews[feature.name] = enable

    def set_flag(self, flag):
        self.set_flags.add(flag.name)

    def clear_flag(self, flag):
        self.set_flags.discard(flag.name)

    def set_memory_pool_limit(self, pool, pool_size):
        self.pools[pool.name] = pool_size

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0

    def create_timing_cache(self, serialized_timing_cache):
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.data.startswith(b"another device"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache

    @property
    def progress_monitor(self):
        return self.monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor):
        self.monitor = monitor


class Builder(Base):
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags=0):
        wanted = (
            "STRONGLY_TYPED"
            if "STRONGLY_TYPED" in self.world.module.NetworkDefinitionCreationFlag.__members__
            else "EXPLICIT_BATCH"
        )
        assert flags & 1 << self.world.enum("NetworkDefinitionCreationFlag", wanted), wanted
        return self.world.module.INetworkDefinition(flags)

    def create_builder_config(self):
        return self.world.module.IBuilderConfig()

    def create_optimization_profile(self):
        return self.world.module.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        if self.world.build_error is not None:
            self.logger.log(ILogger.Severity.ERROR, self.world.build_error)
            return None
        for value in network.model.graph.input:
            dynamic = [not dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert not any(dynamic) or value.name in config.profile.shapes, f"{value.name} has no profile"
        if config.monitor is not None:
            config.monitor.phase_start("Building", None, 2)
            config.monitor.phase_start("Timing", "Building", 7)
            for name, steps in (("Timing", 7), ("Building", 2)):
                for step in range(steps):
                    assert config.monitor.step_complete(name, step)
                config.monitor.phase_finish(name)
        head = {
            "version": self.world.version,
            "flags": sorted(config.set_flags),
            "profiles": config.profile.shapes if config.profile else {},
            "previews": config.previews,
            "pools": config.pools,
            "level": config.builder_optimization_level,
            "cache": (config.cache.data.decode() if config.cache else None),
        }
        layers = [(layer.type, layer.output_types, layer.precision) for layer in network.layers]
        self.world.builds.append({**head, "layers": layers, "hardware": config.hardware_compatibility_level})
        model = onnx.ModelProto()
        model.CopyFrom(network.model)
        if "STRIP_PLAN" in config.set_flags:
            for tensor in model.graph.initializer:
                tensor.raw_data = b""
        return json.dumps(head).encode() + b"\n" + model.SerializeToString()


class Runtime(Base):
    engine_host_code_allowed = False

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        assert self.engine_host_code_allowed is False
        head, _, model = bytes(serialized_engine).partition(b"\n")
        head = json.loads(head)
        if head["version"] != self.world.version and "VERSION_COMPATIBLE" not in head["flags"]:
            self.logger.log(ILogger.Severity.ERROR, "the engine plan file is not compatible with this version")
            return None
        return self.world.module.ICudaEngine(head, model, self.logger)


class ICudaEngine(Base):
    def __init__(self, head, model, logger):
        self.head, self.logger, self.proto = head, logger, onnx.load_model_from_string(model)
        self.missing = (
            {tensor.name for tensor in self.proto.graph.initializer} if "STRIP_PLAN" in head["flags"] else set()
        )
        self.budget, self.contexts = None, 0
        self.tensors = [(value, "INPUT") for value in self.proto.graph.input]
        self.tensors += [(value, "OUTPUT") for value in self.proto.graph.output]
        self._session = None

    @property
    def _running(self):
        if self._session is None:
            assert not self.missing, "an engine without weights was run"
            options = OnnxRuntimeBackend(1)._options(True)
            self._session = onnxruntime.InferenceSession(self.proto.SerializeToString(), options)
        return self._session

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    def get_tensor_name(self, index):
        return self.tensors[index][0].name

    def get_tensor_dtype(self, name):
        kind = ONNX_TYPES[self._value(name).type.tensor_type.elem_type]
        if kind not in self.world.module.DataType.__members__:
            kind = "INT32"  # 8.6 knows no INT64
        return self.world.enum("DataType", kind)

    def get_tensor_mode(self, name):
        return self.world.enum("TensorIOMode", next(side for value, side in self.tensors if value.name == name))

    def _value(self, name):
        return next(value for value, _ in self.tensors if value.name == name)

    @property
    def device_memory_size(self):
        return 4096

    @property
    def streamable_weights_size(self):
        return 1000

    @property
    def weight_streaming_budget_v2(self):
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget):
        assert "WEIGHT_STREAMING" in self.head["flags"]
        assert budget <= 1000
        self.budget = budget

    def get_weight_streaming_automatic_budget(self):
        return 500

    def create_execution_context(self, strategy=None):
        assert strategy.name == "USER_MANAGED", "contexts share the workspace"
        return self.world.module.IExecutionContext(self)

    def create_execution_context_without_device_memory(self):
        return self.world.module.IExecutionContext(self)


class Refitter(Base):
    def __init__(self, engine, logger):
        self.engine = engine

    def get_missing_weights(self):
        return sorted(self.engine.missing)

    def set_named_weights(self, name, weights):
        tensor = next(t for t in self.engine.proto.graph.initializer if t.name == name)
        tensor.raw_data = np.ascontiguousarray(weights).tobytes()
        self.engine.missing.discard(name)
        return True

    def refit_cuda_engine(self):
        return not self.engine.missing


class OnnxParserRefitter(Base):
    def __init__(self, refitter, logger):
        self.refitter, self.errors = refitter, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def refit_from_bytes(self, model, path=None):
        source = {tensor.name: tensor for tensor in loaded(model, path).graph.initializer}
        for tensor in self.refitter.engine.proto.graph.initializer:
            tensor.CopyFrom(source[tensor.name])
        self.refitter.engine.missing.clear()
        return True


class IExecutionContext(Base):
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.memory, self.warm, self.outputs = (0, 0), False, None
        engine.contexts += 1
        self.profile = 0 if engine.contexts == 1 or self.engine.world.shares_profiles else -1

    def _complain(self, text):
        self.engine.logger.log(ILogger.Severity.ERROR, text)
        return False

    @property
    def active_optimization_profile(self):
        return self.profile

    def set_optimization_profile_async(self, profile_index, stream_handle):
        shared = self.engine.world.shares_profiles or self.engine.head["previews"].get("PROFILE_SHARING_0806")
        self.profile = profile_index if shared else self.profile
        return bool(shared)

    def set_input_shape(self, name, shape):
        assert self.profile == 0, "a context without a profile"
        bounds = self.engine.head["profiles"].get(name)
        fits = bounds is None or all(
            low <= size <= high for low, size, high in zip(bounds[0], shape, bounds[2], strict=True)
        )
        if not fits:
            return self._complain(f"{name} {shape} is outside of {bounds}")
        self.shapes[name], self.warm, self.outputs = tuple(shape), False, None
        return True

    def get_tensor_shape(self, name):
        if self.outputs is None:
            session = self.engine._running
            zeros = {i.name: np.zeros(self.shapes[i.name], numpy_type(i.type)) for i in session.get_inputs()}
            made = session.run(None, zeros)
            self.outputs = {o.name: array for o, array in zip(session.get_outputs(), made, strict=True)}
        return self.outputs[name].shape

    def set_tensor_address(self, name, memory):
        if memory % 256:
            return self._complain(f"{name} is not aligned")
        self.addresses[name] = memory
        return True

    def update_device_memory_size_for_shapes(self):
        return 64 * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, memory, size):
        assert memory % 256 == 0
        self.memory = (memory, size)

    @property
    def device_memory(self):
        return self.memory[0]

    @device_memory.setter
    def device_memory(self, address):
        self.memory = (address, self.engine.device_memory_size)

    def execute_async_v3(self, stream_handle):
        cuda, engine = self.engine.world.cuda, self.engine
        streaming = "WEIGHT_STREAMING" in engine.head["flags"]
        if cuda.capturing(stream_handle) and (streaming or not self.warm):
            return self._complain("cannot be captured")
        if self.memory[1] < self._needed():
            return self._complain("not enough device memory")
        self.warm = True
        addresses, shapes, memory = dict(self.addresses), dict(self.shapes), self.memory

        def work() -> None:
            cuda.span(*memory)[:] = 0x5A
            session = engine._running
            binding = session.io_binding()
            keep = []
            for value in session.get_inputs():
                dtype, shape = numpy_type(value.type), shapes[value.name]
                held = NUMPY[engine.get_tensor_dtype(value.name).name]
                count = int(np.prod(shape))
                raw = cuda.span(addresses[value.name], count * np.dtype(held).itemsize)
                array = raw.view(held)
                if held != dtype:
                    array = array.astype(dtype)
                    keep.append(array)
                binding.bind_input(value.name, "cpu", 0, dtype, shape, array.ctypes.data)
            for value in session.get_outputs():
                shape, dtype = self.get_tensor_shape(value.name), numpy_type(value.type)
                cuda.span(addresses[value.name], int(np.prod(shape)) * np.dtype(dtype).itemsize)
                binding.bind_output(value.name, "cpu", 0, dtype, shape, addresses[value.name])
            session.run_with_iobinding(binding)

        cuda.enqueue(stream_handle, "run", work)
        return True

    def _needed(self):
        by_shape = not isinstance(type(self).__dict__.get("update_device_memory_size_for_shapes"), Absent)
        return self.update_device_memory_size_for_shapes() if by_shape else self.engine.device_memory_size


def numpy_type(text: str) -> type:
    """ONNX Runtime's name of a type."""
    return {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(bool)": np.bool_,
    }[text]


CLASSES = {
    cls.__name__: cls
    for cls in (
        ILogger, IProgressMonitor, INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile, ITimingCache,
        IBuilderConfig, Builder, Runtime, ICudaEngine, Refitter, OnnxParserRefitter, IExecutionContext,
    )
}  # fmt: skip
