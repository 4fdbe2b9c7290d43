"""Quality against steps, on the toy: the same noise for all, chunks in order, and figures that tell pictures apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latentc.session import Session, open_session
from PIL import Image

from benchmarks import quality_steps
from benchmarks.quality_judges import Subject
from benchmarks.quality_steps import drawn, measured, relative_times
from tests.runtime import toy

SUBJECT = Subject(
    name="toy",
    solvers=("plain",),
    reference="plain",
    default_steps=(4,),
    judged=lambda found: {"judge": round(float(found.mean()), 3)},
    real=lambda: {"judge": 1.0},
    shown=1,
    labels=(0, 1, 2, 0, 1),
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_session(toy.write_bundle(tmp_path_factory.mktemp("quality") / "toy"), "onnxruntime", threads=1)


def test_chunks_are_in_order_and_have_noise_of_their_own(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_steps, "CHUNK", 2)
    found = drawn(session, SUBJECT, "plain", 4, 5)
    assert found.shape == (5, 3, 8, 8)
    with monkeypatch.context() as patch:  # kept, and not drawn again
        patch.setattr(Session, "draw", None)
        assert torch.equal(found, drawn(session, SUBJECT, "plain", 4, 5))
    assert len({picture.numpy().tobytes() for picture in found}) == 5
    other = replace(SUBJECT, labels=(0, 1, 1, 0, 1))
    changed = (drawn(session, other, "plain", 4, 5) - found).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.tolist() == [False, False, True, False, False]


def test_times_are_multiples_of_the_default(session: Session) -> None:
    found = relative_times(session, SUBJECT, [("plain", 2), ("plain", 4)])
    assert found["plain", 4] == 1.0
    assert found["plain", 2] > 0


def test_a_model_is_measured(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_steps, "ROOT", tmp_path)
    monkeypatch.setattr(quality_steps, "STEPS", (2, 4))
    monkeypatch.setattr(quality_steps, "CONVERGED", 4)
    found = measured(session, SUBJECT, 5)
    two, four = found["rows"]
    assert (two["steps"], two["calls"], four["steps"]) == (2, 2, 4)
    assert four["psnr_db"] == 100.0, "the reference is itself"
    assert two["psnr_db"] < 40.0
    assert four["judge"] == found["reference"]["judge"] != two["judge"]
    with Image.open(tmp_path / "docs/images/quality_steps_toy.webp") as image:
        assert image.size == (3 * 8, 8)  # two step counts and the reference
        sheet = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(sheet[:, 8:16] - sheet[:, 16:]).max() == 0
    assert np.abs(sheet[:, :8] - sheet[:, 16:]).max() > 3
