"""The running half of the TensorRT on the host: engines that compute through ONNX Runtime, contexts, refitters."""

import json

import numpy as np
import onnx
import onnxruntime
from latentc.backends.session_options import session_options

from tests.runtime.backends.tensorrt.fake_base import NUMPY, ONNX_TYPES, Absent, Base
from tests.runtime.backends.tensorrt.fake_builder import ILogger, loaded


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
            options = session_options(1, optimise=True)
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
