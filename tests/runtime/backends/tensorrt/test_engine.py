"""One engine and its bindings: addresses that do not suit TensorRT, types, mistakes, and scratch memory."""

from pathlib import Path

import numpy as np
import pytest
from latentc.backends.cuda.memory import DeviceBuffer
from latentc.backends.host import HostBuffer
from latentc.errors import BackendError
from latentc.session import Session

from tests.runtime.backends.tensorrt.conftest import VERSIONS, Machine
from tests.runtime.backends.tensorrt.helpers import built, reference

HISTORY, ROW, IMAGE = (5, 2, 4, 4, 4), (5,), (2, 3, 8, 8)


@pytest.fixture
def session(machine: Machine, bundle: Path) -> Session:
    machine("10.3.0")
    return built(bundle)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def decoded(session: Session, offset: int) -> np.ndarray:
    """The decoder's picture, with every tensor `offset` bytes away from an aligned address."""
    engine, backend = session.engines["decode"], session.backend
    bound = {}
    for name, shape in (("history", HISTORY), ("output_row", ROW), ("image", IMAGE)):
        room = backend.buffer((int(np.prod(shape)) + 64,), np.float32)
        bound[name] = DeviceBuffer(room.block, room.address + offset, shape, np.float32)
        engine.bind(name, bound[name])
    bound["history"].write(values(*HISTORY))
    bound["output_row"].write(values(*ROW))
    engine.run()
    return bound["image"].read()


@pytest.mark.parametrize("version", VERSIONS)
def test_odd_addresses_are_put_right_by_copies_in_the_stream(machine: Machine, bundle: Path, version: str) -> None:
    cuda, _ = machine(version)
    session = built(bundle)
    straight = decoded(session, 0)
    cuda.record.clear()
    np.testing.assert_array_equal(decoded(session, 4), straight)
    ran = cuda.record.index("run")
    assert "DeviceToDevice" in cuda.record[:ran]
    assert cuda.record[ran + 1] == "DeviceToDevice", "the output is copied where it was asked for"
    assert straight.std() > 0.05
    plain = reference(bundle)
    engine, backend = plain.engines["decode"], plain.backend
    image = backend.buffer(IMAGE, np.float32)
    for name, array in (("history", values(*HISTORY)), ("output_row", values(*ROW))):
        engine.bind(name, HostBuffer(array))
    engine.bind("image", image)
    engine.run()
    np.testing.assert_array_equal(straight, image.read())


def test_mistakes_are_named(session: Session) -> None:
    engine, backend = session.engines["decode"], session.backend
    with pytest.raises(BackendError, match="graph decode has no tensor x; it has history, image, output_row"):
        engine.bind("x", backend.buffer((1,), np.float32))
    with pytest.raises(TypeError, match="HostBuffer is not a buffer of this backend"):
        engine.bind("history", HostBuffer(values(*HISTORY)))
    with pytest.raises(BackendError, match="graph decode: tensor history is float32, got float16"):
        engine.bind("history", backend.buffer(HISTORY, np.float16))
    with pytest.raises(BackendError, match="nothing bound to history, image, output_row"):
        engine.run()
    engine.bind("history", backend.buffer(HISTORY, np.float32))
    engine.bind("output_row", backend.buffer(ROW, np.float32))
    engine.bind("image", backend.buffer((1, 3, 8, 8), np.float32))
    with pytest.raises(BackendError, match=r"makes image of shape \[2, 3, 8, 8\], bound is \[1, 3, 8, 8\]"):
        engine.run()


def test_int64_is_narrowed_where_tensorrt_has_no_int64_and_nowhere_else(machine: Machine, bundle: Path) -> None:
    for version, allowed in (("8.6.1", True), ("10.3.0", False)):
        machine(version)
        session = built(bundle)
        plan = session.engines["denoise"]._plan
        assert plan.inputs["class_labels"] == (np.int32 if allowed else np.int64)
        with pytest.raises(BackendError, match="class_labels is int"):
            session.engines["denoise"].bind("class_labels", session.backend.buffer((2, 1), np.float32))


def test_scratch_memory_is_one_block_for_all_engines(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session = built(bundle)
    decoded(session, 0)
    workspace = session.backend.stream_lane.workspace
    before = (workspace.address, workspace.num_bytes)
    engine, backend = session.engines["denoise"], session.backend
    shapes = {"history": (2, 1, 4, 4, 4), "input_row": (2,), "timestep": (1, 1), "guidance_weights": (1,)}
    for name, shape in shapes.items():
        engine.bind(name, backend.buffer(shape, np.float32))
    engine.bind("class_labels", backend.buffer((1, 1), np.int64))
    engine.bind("prediction", backend.buffer((1, 4, 4, 4), np.float32))
    engine.run()
    contexts = [state for e in session.engines.values() for state in e._contexts.values()]
    assert len(contexts) == 2
    assert {state.workspace for state in contexts} == {before}, "the smaller engine uses the larger one's"
    session.backend.stream_lane.pool.synchronise()
