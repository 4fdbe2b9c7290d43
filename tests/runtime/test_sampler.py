"""The loop, against the same arithmetic in numpy: rows, guidance, noise slots, several images."""

from pathlib import Path

import numpy as np
import pytest
from latentc.backends import open_backend
from latentc.bundle import open_bundle
from latentc.sampler import Sampling, sample
from latentc.table import table_from_bundle
from latentc.trajectory import noise_from_seed

from tests.runtime import toy

SHAPE = (2, toy.CHANNELS, toy.SIZE, toy.SIZE)


@pytest.mark.parametrize(("solver", "steps"), [("plain", 2), ("plain", 4), ("heun", 3), ("sde", 3)])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0, 1.5, 4.0])
def test_picture_equals_the_loop_in_numpy(pristine: Path, solver: str, steps: int, cfg_scale: float) -> None:
    bundle, backend = open_bundle(pristine), open_backend("onnxruntime", threads=1)
    record = next(t for t in bundle.manifest.tables if (t.solver, t.steps) == (solver, steps))
    table = table_from_bundle(bundle, record)
    noise = noise_from_seed(5, SHAPE, table.noise_draws)
    trajectory = toy.trajectory(table, noise, (0, 2), cfg_scale)
    engines = {name: backend.load_graph(bundle.graph(name)) for name in bundle.manifest.graphs}
    picture = sample(backend, engines, bundle.manifest, trajectory)
    expected = toy.toy_trajectory(toy.toy_model(), toy.table_of(solver, steps), noise.draws, (0, 2), cfg_scale)
    assert expected.std() > 0.05, "the toy picture must not be flat, or this test could not fail"
    np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-5)


def test_steps_can_be_watched_and_stopped(pristine: Path) -> None:
    bundle, backend = open_bundle(pristine), open_backend("onnxruntime", threads=1)
    table = table_from_bundle(bundle, next(t for t in bundle.manifest.tables if t.solver == "heun"))
    trajectory = toy.trajectory(table, noise_from_seed(5, SHAPE, 0), (0, 1), 2.0)
    engines = {name: backend.load_graph(bundle.graph(name)) for name in bundle.manifest.graphs}
    assert list(Sampling(backend, engines, bundle.manifest, trajectory).steps()) == [1, 2, 3, 4, 5]
    half = Sampling(backend, engines, bundle.manifest, trajectory)
    assert next(half.steps()) == 1
    assert half.decode().shape == (2, 3, toy.SIZE * toy.SCALE, toy.SIZE * toy.SCALE)


def test_guidance_of_one_runs_one_branch(pristine: Path) -> None:
    bundle = open_bundle(pristine)
    table = table_from_bundle(bundle, bundle.manifest.tables[0])
    noise = noise_from_seed(5, SHAPE, 0)
    for cfg_scale, branches in ((1.0, 1), (0.5, 1), (1.01, 2)):
        trajectory = toy.trajectory(table, noise, (0, 1), cfg_scale)
        assert trajectory.constant["class_labels"].shape == (branches, 2)
        assert trajectory.per_call["timestep"].shape == (table.calls, branches, 2)


def test_given_noise_replaces_the_first_draw_only() -> None:
    given = np.full(SHAPE, 0.25, np.float32)
    noise = noise_from_seed(5, SHAPE, 2, first=given).draws
    drawn = noise_from_seed(5, SHAPE, 1).draws
    np.testing.assert_array_equal(noise[0], given)
    np.testing.assert_array_equal(noise[1:], drawn)
