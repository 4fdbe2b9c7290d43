"""The builder half of the TensorRT on the host: parser, network, configuration, and plans."""

import enum
import json
from pathlib import Path

import onnx

from tests.runtime.backends.tensorrt.fake_base import ONNX_TYPES, Base


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
