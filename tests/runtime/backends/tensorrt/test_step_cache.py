"""Cached steps on the fake TensorRT: the bits of ONNX Runtime, and one recording for each level."""

from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest
from latentc.backends.cuda.lane import DeviceLoopMemory
from latentc.cli import main

from tests.runtime import toy_cache
from tests.runtime.backends.tensorrt.conftest import VERSIONS, Machine
from tests.runtime.backends.tensorrt.helpers import built, reference, request_for

LEVELS = (None, "slight", "strong")


@pytest.fixture
def cached(bundle: Path) -> Path:
    return toy_cache.add_step_cache(bundle)


@pytest.mark.parametrize("version", VERSIONS)
def test_levels_take_turns_and_each_replays_its_own_recording(machine: Machine, cached: Path, version: str) -> None:
    cuda, _ = machine(version)
    session, plain = built(cached), reference(cached)
    for seed in range(1, 5):
        for level in LEVELS:
            request = request_for(session, cache=level)
            cuda.record.clear()
            np.testing.assert_array_equal(session.draw(request, seed), plain.draw(request, seed), err_msg=str(level))
            if seed > 2:
                assert cuda.record.count("launch") == 1
                assert "run" not in cuda.record
    assert session.backend.stream_lane.num_recorded == len(LEVELS)


def test_a_recording_that_knew_no_level_would_be_the_wrong_one(
    machine: Machine, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the places of a loop are the same at every level."""
    machine("10.3.0")
    replay = DeviceLoopMemory.replay

    def without_kind(self: DeviceLoopMemory, work: Callable[[], None], kind: Hashable = None) -> None:
        replay(self, work)

    monkeypatch.setattr(DeviceLoopMemory, "replay", without_kind)
    session, plain = built(cached), reference(cached)
    full, strong = (request_for(session, cache=level) for level in (None, "strong"))
    for seed in (1, 2, 3):
        session.draw(full, seed)
    np.testing.assert_array_equal(session.draw(strong, 4), plain.draw(full, 4))
    assert np.abs(plain.draw(strong, 4) - plain.draw(full, 4)).max() > 1e-3


def test_residuals_lie_where_they_lay_and_apart_from_the_history(machine: Machine, cached: Path) -> None:
    machine("10.3.0")
    session = built(cached)
    request = request_for(session, cache="strong")
    from latentc.session import trajectory_of_request

    addresses = []
    for seed in (1, 2, 3):
        sampling = session.sampling(trajectory_of_request(session.bundle, request, seed))
        sampling.draw()
        residual, history = sampling.residuals["residual_0"], sampling._history
        addresses.append(residual.address)  # type: ignore[attr-defined]
        spans = sorted((buffer.address, buffer.address + buffer.num_bytes) for buffer in (residual, history))  # type: ignore[attr-defined]
        assert spans[0][1] <= spans[1][0]
    assert len(set(addresses)) == 1


def test_verify_measures_levels_and_little_memory_draws_them(
    machine: Machine, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("10.3.0")
    session = built(cached)
    assert "denoise_cached" in session.engines
    assert main(["verify", str(cached), "--backend", "tensorrt"]) == 0
    assert "trajectory/image@strong" in capsys.readouterr().out
    pictures = []
    for memory in ("normal", "low"):
        output = tmp_path / f"{memory}.png"
        arguments = ["sample", str(cached), "--label", "cat", "-s", "1", "--cache", "strong", "--no-metadata"]
        assert main([*arguments, "--backend", "tensorrt", "--memory", memory, "-o", str(output)]) == 0
        pictures.append(output.read_bytes())
    assert pictures[0] == pictures[1]
