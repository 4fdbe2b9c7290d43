"""TensorRT on a real GPU: what the fake cannot show. `make test-gpu`; skipped, with the reason, elsewhere."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from latentc.backends import open_backend
from latentc.backends.options import EngineOptions
from latentc.bundle import open_bundle
from latentc.cli import main
from latentc.engines import build_engines
from latentc.errors import BackendError
from latentc.lanes import Lanes
from latentc.parity import psnr_db
from latentc.session import Session, open_session, trajectory_of_request

from benchmarks.gpu.where import why_no_gpu
from tests.runtime import toy
from tests.runtime.backends.tensorrt.helpers import reference, request_for

REASON = why_no_gpu()
if REASON is None and not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_lean")):
    REASON = "TensorRT is not installed"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU to test on: {REASON}")]

Build = Callable[..., Session]


@pytest.fixture(scope="session")
def dit(tmp_path_factory: pytest.TempPathFactory, random_dit_half: Path) -> Path:
    return Path(shutil.copytree(random_dit_half, tmp_path_factory.mktemp("gpu") / "dit"))


@pytest.fixture(scope="session")
def random_dit_half(random_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small DiT in half precision, for the oldest TensorRT, so that all versions take it."""
    from export.pipeline import ExportOptions, export_bundle

    output = tmp_path_factory.mktemp("bundles") / "half"
    export_bundle(
        ExportOptions(
            source=str(random_dit), output=output, solvers=("ddpm", "heun"), steps=(4,), precision="fp16",
            target="tensorrt-8.6",
        )
    )  # fmt: skip
    return output


@pytest.fixture
def toy_path(tmp_path: Path) -> Path:
    return toy.write_bundle(tmp_path / "toy")


def build(path: Path, **options: object) -> Session:
    shutil.rmtree(path / "engines", ignore_errors=True)
    build_engines(open_bundle(path), open_backend("tensorrt", options=EngineOptions(**options)))
    return open_session(path, "tensorrt")


def test_float32_pictures_are_those_of_onnx_runtime(toy_path: Path) -> None:
    session, plain = build(toy_path), reference(toy_path)
    for seed in (1, 2, 3, 4):
        for count in (1, 2, 4):
            request = request_for(session, count)
            assert psnr_db(session.draw(request, seed), plain.draw(request, seed)) >= 60


def test_half_precision_pictures_are_within_35_db(dit: Path, random_dit_bundle: Path) -> None:
    session, plain = build(dit), reference(random_dit_bundle)
    for solver in ("ddpm", "heun"):
        for seed in (1, 2, 3):
            request = request_for(session, solver=solver)
            picture = session.draw(request, seed)
            assert psnr_db(picture, plain.draw(request, seed)) >= 35
            assert picture.std() > 0.02
    assert session.backend.stream_lane.num_recorded == 2


def test_enqueued_recorded_and_replayed_loops_have_the_same_bits(toy_path: Path) -> None:
    session = build(toy_path)
    request = request_for(session)
    pictures = [session.draw(request, 7) for _ in range(4)]
    sampling = session.sampling(trajectory_of_request(session.bundle, request, 7))
    assert list(sampling.steps()) == [1, 2, 3, 4]
    for picture in [*pictures[1:], sampling.decode()]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_what_was_not_finite_is_forgotten(toy_path: Path) -> None:
    session = build(toy_path)
    request = request_for(session)
    before = session.draw(request, 1)
    trajectory = trajectory_of_request(session.bundle, request, 1)
    trajectory.noise[:] = np.nan
    session.sampling(trajectory).draw()
    np.testing.assert_array_equal(session.draw(request, 1), before)


def test_lanes_draw_side_by_side(toy_path: Path) -> None:
    session = build(toy_path)
    request = request_for(session)
    expected = [session.draw(request, seed) for seed in (1, 2)]
    lanes = Lanes(session, 2)
    for _ in range(3):
        with lanes.session() as one, lanes.session() as other:
            samplings = [
                lane.sampling(trajectory_of_request(lane.bundle, request, seed))
                for seed, lane in ((1, one), (2, other))
            ]
            for sampling in samplings:
                sampling.replay()
            for sampling, picture in zip(samplings, expected, strict=True):
                np.testing.assert_array_equal(sampling.picture(), picture)


@pytest.mark.parametrize(
    "options",
    [{"strip_weights": True}, {"weight_streaming": 1 << 20}, {"prologue": "cpu"}, {"hardware_compatible": True}],
    ids=lambda options: next(iter(options)),
)
def test_options_draw_the_same(dit: Path, tmp_path: Path, options: dict[str, object]) -> None:
    path = Path(shutil.copytree(dit, tmp_path / "dit", ignore=shutil.ignore_patterns("engines")))
    plain = build(dit)
    try:
        session = build(path, **options)
    except BackendError as error:
        if "needs TensorRT" in str(error):
            pytest.skip(str(error))
        raise
    request = request_for(session, solver="ddpm")
    for seed in (1, 2, 3):
        assert psnr_db(session.draw(request, seed), plain.draw(request, seed)) >= 35


def test_verify_passes(dit: Path) -> None:
    build(dit)
    assert main(["verify", str(dit), "--backend", "tensorrt"]) == 0


def test_low_memory_draws_the_same(dit: Path) -> None:
    session = build(dit)
    request = request_for(session, solver="ddpm")
    low = open_session(dit, "tensorrt", memory="low")
    np.testing.assert_array_equal(low.draw(request, 3), session.draw(request, 3))


def test_onnx_runtime_on_cuda_draws_the_same(toy_path: Path) -> None:
    try:
        session = open_session(toy_path, "onnxruntime-cuda")
    except BackendError as error:
        pytest.skip(str(error))
    plain = reference(toy_path)
    for seed in (1, 2, 3):
        request = request_for(session)
        assert psnr_db(session.draw(request, seed), plain.draw(request, seed)) >= 60
