"""Device memory: padded rows, reuse, copies in both directions, and mistakes."""

import gc

import numpy as np
import pytest
from latentc.backends.cuda.lane import Lane
from latentc.backends.cuda.memory import DeviceBuffer, device_buffer
from latentc.backends.cuda.runtime import Cuda
from latentc.backends.host import HostBuffer
from latentc.errors import BackendError

from tests.runtime.backends.tensorrt.fake_cuda import FakeCuda


@pytest.fixture
def fake() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def lane(fake: FakeCuda) -> Lane:
    return Lane(Cuda(fake.module()))


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_written_is_read(lane: Lane, apart: bool) -> None:
    buffer = device_buffer(lane.pool, (3, 5), np.float32, rows_apart=apart)
    np.testing.assert_array_equal(buffer.read(), np.zeros((3, 5)))
    values = numbers(3, 5)
    buffer.write(values)
    values[:] = 0  # the caller's array is his again, though the copy has not yet been made
    np.testing.assert_array_equal(buffer.read(), numbers(3, 5))
    for row in range(3):
        view = buffer.view(row)
        np.testing.assert_array_equal(view.read(), numbers(3, 5)[row])
        assert (view.address % 256 == 0) == (apart or row == 0)


def test_rows_apart_are_copied_and_reshaped(lane: Lane) -> None:
    packed = device_buffer(lane.pool, (3, 4), np.float32)
    packed.write(numbers(3, 4))
    apart = device_buffer(lane.pool, (3, 4), np.float32, rows_apart=True)
    apart.copy_from(packed)
    np.testing.assert_array_equal(apart.shaped((3, 2, 2)).view(1).read(), numbers(3, 2, 2)[1])
    assert not apart.packed
    assert packed.packed
    with pytest.raises(ValueError, match="padded rows stay rows"):
        apart.shaped((4, 3))
    packed.copy_from(HostBuffer(-numbers(3, 4)))
    np.testing.assert_array_equal(packed.read(), -numbers(3, 4))


def test_scalars_and_nothing(lane: Lane) -> None:
    scalar = device_buffer(lane.pool, (), np.float32)
    scalar.write(np.array(3, np.float32))
    assert scalar.read() == 3
    nothing = device_buffer(lane.pool, (0, 4), np.float32)
    assert nothing.read().shape == (0, 4)


def test_memory_is_used_again_and_alive_as_long_as_its_views(fake: FakeCuda, lane: Lane) -> None:
    buffer = device_buffer(lane.pool, (2, 64), np.float32)
    address, view = buffer.address, buffer.view(1)
    view.write(numbers(64))
    del buffer
    gc.collect()
    other = device_buffer(lane.pool, (2, 64), np.float32)
    assert other.address != address, "a view keeps the memory"
    np.testing.assert_array_equal(view.read(), numbers(64))
    del view
    gc.collect()
    assert device_buffer(lane.pool, (128,), np.float32).address == address
    used = fake.used
    lane.pool.trim()
    assert fake.used < used


def test_mistakes(lane: Lane) -> None:
    buffer = device_buffer(lane.pool, (2, 3), np.float32)
    with pytest.raises(ValueError, match=r"expected shape \[2, 3\], got \[3\]"):
        buffer.write(numbers(3))
    with pytest.raises(TypeError, match="expected float32, got float64"):
        buffer.write(numbers(2, 3).astype(np.float64))
    with pytest.raises(ValueError, match=r"expected float32 \[2, 3\], got float32 \[3, 2\]"):
        buffer.copy_from(device_buffer(lane.pool, (3, 2), np.float32))
    with pytest.raises(ValueError, match="does not hold as much"):
        buffer.shaped((7,))
    with pytest.raises(IndexError):
        buffer.view(2)


def test_buffers_of_other_lanes_come_through_the_host(fake: FakeCuda, lane: Lane) -> None:
    other = Lane(Cuda(fake.module()))
    source = device_buffer(other.pool, (4,), np.float32)
    source.write(numbers(4))
    target = device_buffer(lane.pool, (4,), np.float32)
    target.copy_from(source)  # of another stream, which is waited for
    np.testing.assert_array_equal(target.read(), numbers(4))
    assert isinstance(target, DeviceBuffer)


def test_errors_of_cuda_are_one_line(fake: FakeCuda, lane: Lane) -> None:
    cuda = lane.cuda
    with pytest.raises(BackendError, match=r"no device memory for 9000 MB more: 10\d\d of 1074 MB are free"):
        cuda.allocate(9 * 10**9)
    with pytest.raises(
        BackendError, match=r"CUDA: cudaMemcpy2DAsync: fake cudaErrorInvalidValue \(cudaErrorInvalidValue"
    ):
        cuda.copy_rows(0, 1, 0, 1, 2, 1, "DeviceToDevice", lane.stream)
    assert cuda.versions() == "driver 12.6, runtime 12.4"


def test_a_driver_that_is_missing_is_one_line() -> None:
    """cuda-bindings 12 raises RuntimeError where there is no libcuda (12.8.0 does; 13.5.0 returns a status)."""
    module = FakeCuda().module()

    def fails() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    module.cudaGetDeviceCount = fails
    with pytest.raises(
        BackendError, match=r"CUDA: cudaGetDeviceCount: Failed to dlopen libcuda.so.1; is the NVIDIA driver"
    ):
        Cuda(module).device()
