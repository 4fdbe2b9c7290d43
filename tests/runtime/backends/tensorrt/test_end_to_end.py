"""The whole backend on the fake: the same bits as ONNX Runtime, one launch a request, nothing waited for in between."""

import gc
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from latentc.errors import BackendError
from latentc.lanes import Lanes
from latentc.sampler import Sampling
from latentc.session import open_session, trajectory_of_request

from tests.runtime import toy_variants
from tests.runtime.backends.tensorrt.conftest import VERSIONS, Machine
from tests.runtime.backends.tensorrt.helpers import built, reference, request_for


@pytest.fixture
def sizes(bundle: Path) -> Path:
    """A bundle of many sizes, whose decoder can be run on tiles."""
    return toy_variants.free_sizes(bundle)


@pytest.fixture
def hoisted(random_dit_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a schedule graph."""
    return Path(shutil.copytree(random_dit_bundle, tmp_path / "dit", ignore=shutil.ignore_patterns("engines")))


@pytest.mark.parametrize("version", VERSIONS)
def test_pictures_have_the_bits_of_onnx_runtime(machine: Machine, bundle: Path, version: str) -> None:
    machine(version)
    session, plain = built(bundle), reference(bundle)
    for seed, count in ((1, 2), (2, 2), (3, 2), (4, 1), (5, 2)):
        request = request_for(session, count)
        picture = session.draw(request, seed)
        np.testing.assert_array_equal(picture, plain.draw(request, seed))
        assert picture.std() > 0.05


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
@pytest.mark.parametrize("solver", ["heun", "ddpm"])
def test_hoisted_rows_and_noise_draws(machine: Machine, hoisted: Path, version: str, solver: str) -> None:
    machine(version)
    session, plain = built(hoisted), reference(hoisted)
    assert "schedule" in session.engines
    for seed in (1, 2, 3):
        request = request_for(session, solver=solver)
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))


@pytest.mark.parametrize("version", VERSIONS)
def test_from_the_third_request_on_the_loop_is_one_launch(machine: Machine, bundle: Path, version: str) -> None:
    cuda, _ = machine(version)
    session = built(bundle)
    request, records = request_for(session), []
    for seed in (1, 2, 3):
        cuda.record.clear()
        session.draw(request, seed)
        records.append(list(cuda.record))
    calls = request.table.calls
    # Enqueued: every step, the decoder, and one wait, for the picture. TensorRT's memory may grow in the first one.
    first = [what for what in records[0] if what in ("run", "launch", "DeviceToHost")]
    assert first == ["run"] * (calls + 1) + ["DeviceToHost"]
    loop = records[1][records[1].index("begin capture") :]
    assert loop[0] == "begin capture"
    assert loop[-4:] == ["end capture", "launch", "DeviceToHost", "synchronise"]
    inside = loop[1:-4]
    assert [what for what in inside if what == "capture run"] == ["capture run"] * (calls + 1)
    # Nothing is copied between steps, but the labels on 8.6: int64 in the bundle, int32 in TensorRT.
    assert (set(inside) - {"capture run"}) == ({"capture DeviceToDevice"} if version == "8.6.1" else set())
    assert records[2][-3:] == ["launch", "DeviceToHost", "synchronise"]
    assert not any("run" in what or "capture" in what or what in ("malloc", "free") for what in records[2])
    # Nothing waits before the picture is read.
    assert records[2].count("synchronise") == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_tiles_are_decoded_after_the_recorded_loop(machine: Machine, sizes: Path, version: str) -> None:
    cuda, _ = machine(version)
    session, plain = built(sizes), reference(sizes)
    request = request_for(session, count=1, width=46, height=30, tile=16)
    whole = request_for(session, count=1, width=46, height=30)
    for seed in range(1, 6):
        cuda.record.clear()
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
        ran = [what for what in cuda.record if what in ("run", "launch")]
        # The workspace may have grown with the first tiles, which makes the second loop a warm-up, too.
        assert seed < 4 or ran == ["launch"] + ["run"] * 12
        # Beside it, the same size in one piece has a recording of its own.
        np.testing.assert_array_equal(session.draw(whole, seed), plain.draw(whole, seed))
    assert session.backend.stream_lane.num_recorded == 2


def test_engines_of_one_size_say_that_they_have_no_tiles(machine: Machine, sizes: Path) -> None:
    machine("10.3.0")
    session = built(sizes, sizes=((46, 30),))
    assert session.draw(request_for(session, width=46, height=30), 1).shape == (2, 3, 30, 46)
    with pytest.raises(BackendError, match=r"decode does not take \[2, 1, 4, 8, 8\] as history; it was built for"):
        session.draw(request_for(session, width=46, height=30, tile=16), 1)


def test_a_picture_drawn_step_by_step_is_the_same_and_waits_for_nothing(machine: Machine, bundle: Path) -> None:
    cuda, _ = machine("10.3.0")
    session, plain = built(bundle), reference(bundle)
    request = request_for(session)
    for seed in (1, 2):
        sampling = session.sampling(trajectory_of_request(session.bundle, request, seed))
        cuda.record.clear()
        assert list(sampling.steps()) == [1, 2, 3, 4]
        if seed == 2:
            assert cuda.record == ["run"] * 4
        np.testing.assert_array_equal(sampling.decode(), plain.draw(request, seed))


def test_many_shapes_keep_their_recordings_apart(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session, plain = built(bundle, batch=7), reference(bundle)
    for seed in range(1, 4):
        for count in (1, 2, 3, 4, 5, 6, 7, 1, 2):  # more than a lane keeps, of recordings and of contexts
            request = request_for(session, count)
            np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
    for seed in (4, 5):
        session.draw(request_for(session, 2), seed)
    assert 0 < session.backend.stream_lane.num_recorded <= 4


def test_a_broken_request_does_not_poison_the_next(machine: Machine, bundle: Path) -> None:
    """The history is the same memory again, and 0 times the NaN of the last request would be NaN."""
    machine("10.3.0")
    session, plain = built(bundle), reference(bundle)
    request = request_for(session)
    for _ in range(2):
        trajectory = trajectory_of_request(session.bundle, request, 1)
        trajectory.noise[:] = np.nan
        assert np.isnan(session.sampling(trajectory).draw()).any()
    np.testing.assert_array_equal(session.draw(request, 2), plain.draw(request, 2))


def test_one_lane_holds_one_request(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session = built(bundle)
    trajectory = trajectory_of_request(session.bundle, request_for(session), 1)
    older = session.sampling(trajectory)
    session.sampling(trajectory)
    with pytest.raises(ValueError, match="another request has begun in this lane"):
        older.draw()


def test_lanes_draw_side_by_side(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session, plain = built(bundle), reference(bundle)
    request = request_for(session)
    lanes = Lanes(session, 2)
    # Two requests in flight, one in each lane, their steps interleaved.
    with lanes.session() as one, lanes.session() as other:
        assert one.backend.stream_lane.stream != other.backend.stream_lane.stream
        assert one.engines["denoise"]._plan is other.engines["denoise"]._plan  # the weights
        samplings = [s.sampling(trajectory_of_request(s.bundle, request, seed)) for seed, s in ((1, one), (2, other))]
        for _ in zip(*(sampling.steps() for sampling in samplings), strict=True):
            pass
        for seed, sampling in enumerate(samplings, 1):
            np.testing.assert_array_equal(sampling.decode(), plain.draw(request, seed))
    # A third one waits for a lane.
    with lanes.session(), lanes.session():
        got = threading.Event()

        def third() -> None:
            with lanes.session():
                got.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not got.wait(0.05)
    assert got.wait(10)
    thread.join()


@pytest.mark.parametrize("how", ["at the build", "at the load"])
def test_the_prologue_stays_on_the_cpu(machine: Machine, hoisted: Path, how: str) -> None:
    cuda, _ = machine("10.3.0")
    if how == "at the build":
        session = built(hoisted, prologue="cpu")
        assert not (hoisted / "engines" / session.backend.target / "schedule.plan").exists()
        assert open_session(hoisted, "auto").backend.name.startswith("tensorrt")  # the record says where it runs
    else:
        built(hoisted)
        session = open_session(hoisted, "tensorrt", prologue="cpu")
    assert session.prologue.name.startswith("onnxruntime")
    plain, request = reference(hoisted), request_for(session)
    for seed in (1, 2, 3):
        cuda.record.clear()
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
    assert "run" not in cuda.record  # the third request runs nothing but the recording


def test_weight_streaming_enqueues_step_by_step(machine: Machine, bundle: Path) -> None:
    cuda, _ = machine("10.3.0")
    session, plain = built(bundle, weight_streaming=-1), reference(bundle)
    request = request_for(session)
    for seed in (1, 2, 3):
        cuda.record.clear()
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
    assert cuda.record.count("run") == request.table.calls + 1
    assert not any("capture" in what for what in cuda.record)


def test_a_loop_that_cannot_be_recorded_is_enqueued_and_said_once(
    machine: Machine, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda, module = machine("10.3.0")
    session, plain = built(bundle), reference(bundle)
    execute = module.IExecutionContext.execute_async_v3
    module.IExecutionContext.execute_async_v3 = lambda self, stream: (
        not cuda.capturing(stream) and execute(self, stream)
    )
    request = request_for(session)
    for seed in (1, 2, 3):
        np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("latentc: the loop is not recorded as a CUDA graph but enqueued step by step: graph denoise")


@pytest.mark.parametrize("lean", [False, True])
def test_stripped_engines_are_filled_from_the_bundle(machine: Machine, bundle: Path, lean: bool) -> None:
    machine("10.3.0")
    session = built(bundle, strip_weights=True, version_compatible=lean)
    if lean:
        machine("10.3.0", lean=True)
        session = open_session(bundle, "tensorrt")
        assert session.backend.name == "tensorrt_lean 10.3.0"
    request = request_for(session)
    np.testing.assert_array_equal(session.draw(request, 3), reference(bundle).draw(request, 3))


def test_a_session_that_is_gone_holds_nothing(machine: Machine, bundle: Path) -> None:
    cuda, _ = machine("10.3.0")
    session = built(bundle)
    request = request_for(session)
    lane = session.in_lane()
    for seed in (1, 2, 3):
        session.draw(request, seed)
        lane.draw(request, seed)
    assert cuda.used > 0
    assert len(cuda._executables) == 2
    del session, lane
    gc.collect()
    assert cuda.used == 0
    assert not cuda._executables
    assert not cuda._streams


def test_sampling_alone_needs_no_session(machine: Machine, bundle: Path) -> None:
    machine("10.3.0")
    session = built(bundle)
    request = request_for(session)
    trajectory = trajectory_of_request(session.bundle, request, 3)
    sampling = Sampling(session.backend, session.engines, session.bundle.manifest, trajectory)
    np.testing.assert_array_equal(sampling.draw(), reference(bundle).draw(request, 3))
