"""Rows of a denoiser on a core each: the same numbers, and only where the graph allows it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from latentc.backends import open_backend, sessions
from latentc.backends.host import HostBuffer
from latentc.backends.onnxruntime import OnnxRuntimeBackend
from latentc.backends.row_parts import Part, PartedRun, Rows, WholeRun, of_part, parts_of, rows_of
from latentc.bundle import GraphBytes, open_bundle
from latentc.errors import BackendError
from latentc.request import Asked, resolve
from latentc.session import open_session

from tests.runtime import toy

# A denoiser of three values a picture; `hidden` has a row for each, as a residual of the step cache.
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
denoise (float[slots, batch, 3] history, float[guidance_branches] guidance_weights, float[rows, 3] add,
         float[rows, 3] old) => (float[batch, 3] prediction, float[rows, 3] hidden)
<int64[1] first = {0}, int64[1] any = {-1}, int64[1] three = {3}, int64[3] column = {-1, 1, 1}> {
  x = ReduceSum <keepdims = 0> (history, first)
  pictures = Shape <start = 1, end = 2> (history)
  apart = Concat <axis = 0> (any, pictures, three)
  together = Concat <axis = 0> (any, three)
  added = Reshape (add, apart)
  factors = Reshape (old, apart)
  squared = Mul (x, x)
  sum = Add (squared, added)
  both = Mul (sum, factors)
  hidden = Reshape (both, together)
  w = Reshape (guidance_weights, column)
  weighted = Mul (both, w)
  prediction = ReduceSum <keepdims = 0> (weighted, first)
}
"""


def graph_bytes(rows: int) -> GraphBytes:
    model = onnx.parser.parse_model(TEXT)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "rows":  # the parser knows no products
                dim.dim_param = "batch*guidance_branches"
    return GraphBytes("denoise", memoryview(model.SerializeToString()), "none", memoryview(b""), rows=rows)


def arrays(branches: int, pictures: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(branches * 10 + pictures)
    shapes = {"history": (4, pictures, 3), "guidance_weights": (branches,)}
    shapes |= dict.fromkeys(("add", "old", "hidden"), (branches * pictures, 3)) | {"prediction": (pictures, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def results(engine_of: GraphBytes, threads: int, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What two runs in a row leave, the second with another history in the same memory."""
    engine = open_backend("onnxruntime", threads).load_graph(engine_of)
    own = {name: values.copy() for name, values in given.items()}
    for name, values in own.items():
        engine.bind(name, HostBuffer(values))
    engine.run()
    own["history"] *= 2.0
    again = np.zeros_like(own["prediction"])
    engine.bind("prediction", HostBuffer(again))
    engine.run()
    return {"first": own["prediction"], "second": again, "hidden": own["hidden"]}


@pytest.mark.parametrize(
    ("branches", "pictures", "count", "parts"),
    [
        (2, 1, 2, [(0, 0), (1, 0)]),
        (2, 3, 2, [(0, 0), (1, 0)]),  # three pictures in each
        (1, 4, 2, [(0, 0), (0, 2)]),
        (2, 2, 4, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (2, 1, 4, []),
        (1, 3, 2, []),
        (2, 2, 1, []),
    ],
)
def test_parts_are_equal_or_none(branches: int, pictures: int, count: int, parts: list[tuple[int, int]]) -> None:
    rows = Rows(branches, pictures)
    found = parts_of(rows, count)
    assert [(part.branches.start, part.pictures.start) for part in found] == parts
    covered = np.zeros((branches, pictures), int)
    for part in found:
        covered[part.branches, part.pictures] += 1
    assert (covered == bool(parts)).all()


def test_a_share_is_a_view_of_its_rows() -> None:
    rows, array = Rows(2, 3), np.arange(6 * 2).reshape(6, 2)  # branch by branch
    share = of_part(array, ("batch*guidance_branches", 2), rows, Part(slice(1, 2), slice(0, 2)))
    assert share.tolist() == [[[6, 7], [8, 9]]]
    assert share.base is not None
    assert of_part(array, ("slots", 2), rows, Part(slice(1, 2), slice(0, 2))) is not None
    assert rows_of({"x": ("2*batch", 4), "w": ("guidance_branches",)}, {"x": array, "w": array}) is None
    assert rows_of({"x": ("batch", 4)}, {"x": array}) is None, "no denoiser"


@pytest.mark.parametrize(
    ("branches", "pictures", "threads"), [(2, 1, 2), (2, 3, 2), (1, 4, 2), (2, 2, 4), (2, 4, 4), (1, 3, 2)]
)
def test_parts_leave_what_the_whole_leaves(branches: int, pictures: int, threads: int) -> None:
    given = arrays(branches, pictures)
    whole = results(graph_bytes(0), threads, given)
    parted = results(graph_bytes(branches), threads, given)
    for name, values in whole.items():
        np.testing.assert_allclose(parted[name], values, rtol=1e-6, atol=1e-6)
    assert np.abs(whole["first"] - whole["second"]).max() > 0.1, "the second run sees what was written since"


def sessions_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each session that is made from here on."""
    made: list[int] = []
    old = sessions.Sessions.__init__

    def watched(self: sessions.Sessions, load: Callable[[int], onnxruntime.InferenceSession], *rest: object) -> None:
        def counted(threads: int) -> onnxruntime.InferenceSession:
            made.append(threads)
            return load(threads)

        old(self, counted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions.Sessions, "__init__", watched)
    return made


def kinds(engine_of: GraphBytes, requests: list[tuple[int, int]]) -> list[type]:
    """How each request (branches, pictures) is run by one engine of two threads."""
    backend = OnnxRuntimeBackend(2)
    engine = backend.load_graph(engine_of)
    found = []
    for branches, pictures in requests:
        for name, values in arrays(branches, pictures).items():
            engine.bind(name, HostBuffer(values))
        engine.run()
        found.append(type(engine._run))  # type: ignore[attr-defined]
    return found


REQUESTS = [(2, 1), (1, 1), (2, 1), (1, 2)]


def test_a_session_is_made_when_a_request_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sessions_made(monkeypatch)
    assert kinds(graph_bytes(2), REQUESTS) == [PartedRun, WholeRun, PartedRun, PartedRun]
    assert made == [1, 2]
    assert kinds(graph_bytes(1), REQUESTS[1:2]) == [WholeRun]
    assert made == [1, 2, 2]


def test_large_weights_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_BOTH_BYTES", -1)
    made = sessions_made(monkeypatch)
    assert kinds(graph_bytes(2), REQUESTS) == [PartedRun, WholeRun, WholeRun, WholeRun]
    assert made == [1, 2], "what is made for the whole stays"
    assert kinds(graph_bytes(1), REQUESTS) == [WholeRun] * 4
    assert made == [1, 2, 2]


def test_an_error_in_a_part_is_one_line() -> None:
    engine = OnnxRuntimeBackend(2).load_graph(graph_bytes(2))
    for name, values in arrays(2, 1).items():
        engine.bind(name, HostBuffer(values))
    engine.bind("add", HostBuffer(np.zeros((3, 3), np.float32)))  # no rows of two branches
    with pytest.raises(BackendError, match="graph denoise cannot be run"):
        engine.run()


@pytest.mark.parametrize(("count", "cfg_scale"), [(1, 4.0), (3, 4.0), (2, 1.0)])
def test_a_request_is_drawn_as_by_one_thread(
    pristine: Path, tmp_path: Path, count: int, cfg_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(pristine, tmp_path / "toy"))
    manifest = toy.read_manifest(root)
    request = resolve(manifest, Asked(label=next(iter(toy.LABELS)), count=count, cfg_scale=cfg_scale))
    toy.seal(root, msgspec.structs.replace(manifest, guided_channels=toy.CHANNELS))
    made = sessions_made(monkeypatch)
    alone = open_session(root, "onnxruntime", threads=1).draw(request, seed=3)
    assert set(made) == {1}
    made.clear()
    drawn = open_session(root, "onnxruntime", threads=2).draw(request, seed=3)
    assert 1 in made, "the denoiser's rows are run apart"
    np.testing.assert_allclose(drawn, alone, atol=1e-6)


def test_only_a_sum_over_branches_is_run_apart(pristine: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pristine, tmp_path / "toy"))
    manifest = toy.read_manifest(root)
    found = {}
    for channels in (None, toy.CHANNELS - 1, toy.CHANNELS):
        toy.seal(root, msgspec.structs.replace(manifest, guided_channels=channels))
        found[channels] = [open_bundle(root).graph(name).rows for name in ("denoise", "decode")]
    assert found == {None: [0, 0], toy.CHANNELS - 1: [0, 0], toy.CHANNELS: [2, 0]}
