"""One engine at a time: what is open, what is closed, and that the pictures are the same."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from latentc.backends import open_backend
from latentc.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from latentc.backends.protocol import Buffer
from latentc.engines import build_engines, load_engines
from latentc.errors import BackendError
from latentc.memory import Memory
from latentc.picture import quantise
from latentc.request import Asked, resolve
from latentc.session import Session, open_session, trajectory_of_request
from latentc.stages import OneAtATime
from latentc.verification import measured

from tests.runtime import toy, toy_variants

SEED = 11


class Engine:
    """Says what happens to it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        log.append(f"open {name}")

    def bind(self, name: str, buffer: Buffer) -> None:
        raise AssertionError("not here")

    def run(self) -> None:
        raise AssertionError("not here")

    def close(self) -> None:
        self.log.append(f"close {self.name}")


def test_no_two_are_open_together() -> None:
    log: list[str] = []
    engines = OneAtATime(("a", "b"), lambda name: Engine(name, log))
    assert "a" in engines
    assert "c" not in engines
    assert (list(engines), len(engines), log) == (["a", "b"], 2, [])
    first = engines["a"]
    assert engines["a"] is first
    with pytest.raises(KeyError):
        engines["c"]
    assert log == ["open a"], "an engine that is not there closes nothing"
    assert engines["b"] is not first
    assert log == ["open a", "close a", "open b"]
    engines.close()
    engines.close()
    assert log[3:] == ["close b"]
    assert engines["a"] is not first


def test_one_that_cannot_be_opened_leaves_none() -> None:
    log: list[str] = []

    def load(name: str) -> Engine:
        if name == "bad":
            raise BackendError("no")
        return Engine(name, log)

    engines = OneAtATime(("a", "bad"), load)
    engines["a"]
    with pytest.raises(BackendError):
        engines["bad"]
    engines["a"]
    assert log == ["open a", "close a", "open a"]


@pytest.fixture(scope="module")
def text(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text") / "toy"
    return toy_variants.make_text(Path(shutil.copytree(pristine, root)))


def pictures(session: Session, asked: Asked, pixels: toy.Floats | None = None) -> toy.Floats:
    return session.draw(resolve(session.bundle.manifest, asked), SEED, pixels)


def test_pictures_are_the_same(pristine: Path, text: Path, over_image: Path) -> None:
    pixels = np.random.default_rng(2).random((1, 3, 8, 8), np.float32)
    for bundle, asked, image in (
        (pristine, Asked(label="dog", count=2), None),
        (pristine, Asked(label="cat", solver="sde", steps=3, cfg_scale=1), None),
        (text, Asked(prompts=("dog", "cat"), negative_prompts=("fruit",)), None),
        (over_image, Asked(label="dog", solver="sde", steps=3, init_image=True, strength=0.7), pixels),
    ):
        low = open_session(bundle, "onnxruntime", threads=1, memory="low")
        drawn = pictures(low, asked, image)
        assert drawn.std() > 0.05
        np.testing.assert_array_equal(pictures(low, asked, image), drawn)  # stages that come again
        # To come and go changes no bit: the same engines, all open together.
        engines = {name: low.backend.load_graph(low.bundle.graph(name), mapped=True) for name in low.engines}
        np.testing.assert_array_equal(pictures(Session(low.bundle, low.backend, engines), asked, image), drawn)
        # ONNX Runtime's kernels for weights that it has copied sum in another order: a bit of float32, none of the PNG.
        normal = pictures(open_session(bundle, "onnxruntime", threads=1), asked, image)
        np.testing.assert_allclose(drawn, normal, rtol=0, atol=2e-7)
        np.testing.assert_array_equal(quantise(drawn), quantise(normal))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that are loaded, in order; -NAME is closed."""
    log: list[str] = []
    load, close = OnnxRuntimeBackend.load_graph, OnnxRuntimeEngine.close

    def loading(self: OnnxRuntimeBackend, graph: object, **options: bool) -> object:
        assert options == {"mapped": True}
        log.append(graph.name)  # type: ignore[attr-defined]
        return load(self, graph, **options)  # type: ignore[arg-type]

    def closing(self: OnnxRuntimeEngine) -> None:
        log.append(f"-{self._name}")
        close(self)

    monkeypatch.setattr(OnnxRuntimeBackend, "load_graph", loading)
    monkeypatch.setattr(OnnxRuntimeEngine, "close", closing)
    return log


def test_stages_come_and_go_in_the_order_of_a_request(text: Path, over_image: Path, opened: list[str]) -> None:
    session = open_session(text, "onnxruntime", threads=1, memory="low")
    assert opened == []
    pictures(session, Asked(prompts=("dog",)))
    assert opened == ["text", "-text", "denoise", "-denoise", "decode"]
    opened.clear()
    pictures(session, Asked(prompts=("dog",)))
    assert opened == ["-decode", "denoise", "-denoise", "decode"], "a prompt of the cache needs no encoder"
    assert session.cache.hits > 0
    opened.clear()
    session = open_session(over_image, "onnxruntime", threads=1, memory="low")
    asked = Asked(label="dog", solver="sde", steps=3, init_image=True)
    pictures(session, asked, np.zeros((1, 3, 8, 8), np.float32))
    assert opened == ["encode", "-encode", "denoise", "-denoise", "decode"]


def test_steps_can_be_watched_and_a_second_request_ends_the_first(pristine: Path) -> None:
    session = open_session(pristine, "onnxruntime", threads=1, memory="low")
    request = resolve(session.bundle.manifest, Asked(label="dog"))
    first = session.sampling(trajectory_of_request(session.bundle, request, SEED))
    steps = first.steps()
    assert next(steps) == 1
    whole = session.sampling(trajectory_of_request(session.bundle, request, SEED))
    assert list(whole.steps()) == [1, 2, 3, 4]
    drawn = whole.decode()
    with pytest.raises(BackendError, match="graph denoise is closed: with little memory one request runs at a time"):
        list(steps)
    np.testing.assert_array_equal(drawn, pictures(session, Asked(label="dog")))


def test_built_engines_are_left_alone(bundle: Path) -> None:
    session = open_session(bundle, "onnxruntime", threads=1)
    assert load_engines(session.bundle, session.backend, "low").reason is None
    build_engines(session.bundle, session.backend)
    loaded = load_engines(session.bundle, session.backend, "low")
    assert (loaded.built, loaded.reason) == (False, "--memory low reads the graphs' own weights")
    assert load_engines(session.bundle, session.backend).built


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_verify(pristine: Path, memory: Memory) -> None:
    session = open_session(pristine, "onnxruntime", threads=1)
    figures = list(measured(session.bundle, open_backend("onnxruntime", 1), memory))
    assert len(figures) == 5
    assert all(figure.holds for figure in figures)
