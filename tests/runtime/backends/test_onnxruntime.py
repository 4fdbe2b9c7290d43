"""The ONNX Runtime backend: in-place binding, and no way for a model to read a file that was not hashed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from latentc.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from latentc.backends.protocol import Array, Engine
from latentc.bundle import GraphBytes, map_file, open_bundle
from latentc.errors import BackendError
from onnx import TensorProto, helper

COUNT = 256
SECRET, LISTED = 7.0, 3.0


@pytest.fixture(scope="module")
def backend() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(threads=1)


def external(location: str) -> onnx.TensorProto:
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[COUNT], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * COUNT))):
        proto.external_data.add(key=key, value=value)
    return proto


def graph_with_weights(location: str, where: str) -> bytes:
    """y = x + w, with w external: a plain initialiser, in a nested graph, or the value of a Constant."""
    weights, z = external(location), helper.make_tensor_value_info("z", TensorProto.FLOAT, [COUNT])
    nodes, initialisers = [], []
    if where == "initialiser":
        nodes, initialisers = [helper.make_node("Identity", ["w"], ["z"])], [weights]
    elif where == "constant":
        nodes = [helper.make_node("Constant", [], ["z"], value=weights)]
    else:
        inner = [helper.make_node("Identity", ["w"], ["z"])]
        branch = helper.make_graph(inner, "branch", [], [z], [weights])
        if where == "nested constant":
            branch = helper.make_graph([helper.make_node("Constant", [], ["z"], value=weights)], "branch", [], [z])
        true = helper.make_node("Constant", [], ["true"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
        nodes = [true, helper.make_node("If", ["true"], ["z"], then_branch=branch, else_branch=branch)]
    nodes.append(helper.make_node("Add", ["x", "z"], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [COUNT]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def run(backend: OnnxRuntimeBackend, model: bytes, mapped: bool = False) -> float:
    weights = np.full(COUNT, LISTED, np.float32).tobytes()
    engine = backend.load_graph(GraphBytes("g", memoryview(model), "g.weights", memoryview(weights)), mapped=mapped)
    x, y = backend.buffer((COUNT,), np.float32), backend.buffer((COUNT,), np.float32)
    engine.bind("x", x)
    engine.bind("y", y)
    engine.run()
    return float(y.array[0])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("where", ["initialiser", "constant"])
def test_listed_weights_are_read_from_memory(backend: OnnxRuntimeBackend, where: str, mapped: bool) -> None:
    assert run(backend, graph_with_weights("g.weights", where), mapped) == LISTED


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("where", ["initialiser", "constant", "nested initialiser", "nested constant"])
def test_no_model_can_name_another_file(
    backend: OnnxRuntimeBackend, where: str, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, here = tmp_path / "secret.bin", tmp_path / "here"
    secret.write_bytes(np.full(COUNT, SECRET, np.float32).tobytes())
    here.mkdir()
    (here / "beside.bin").write_bytes(secret.read_bytes())
    (here / "link.bin").symlink_to(secret)
    monkeypatch.chdir(here)  # from bytes, ONNX Runtime would look in the working directory
    locations = ["beside.bin", "./beside.bin", "../secret.bin", str(secret), "link.bin", "../here/beside.bin", "none"]
    for location in [*locations, "*/_ORT_MEM_ADDR_/*", f"../../../../../../../../..{secret}"]:
        with pytest.raises(BackendError, match="graph g cannot be loaded"):
            run(backend, graph_with_weights(location, where), mapped)


def test_the_output_is_written_in_place(backend: OnnxRuntimeBackend, pristine: Path) -> None:
    engine = backend.load_graph(open_bundle(pristine).graph("decode"))
    history = backend.buffer((3, 1, 4, 4, 4), np.float32)
    history.view(1).write(np.ones((1, 4, 4, 4), np.float32))
    assert history.array[1].all()
    assert not history.array[[0, 2]].any()
    row = backend.buffer((3,), np.float32)
    row.write(np.array([0, 1, 0], np.float32))
    pictures = backend.buffer((2, 1, 3, 8, 8), np.float32)
    engine.bind("history", history)
    engine.bind("output_row", row)
    for i in range(2):  # the same name bound again moves the pointer
        engine.bind("image", pictures.view(i))
        engine.run()
    assert pictures.array.any()
    np.testing.assert_array_equal(pictures.array[0], pictures.array[1])


def test_nothing_is_written_beyond_a_buffer(backend: OnnxRuntimeBackend) -> None:
    def engine(source: int, result: int) -> Engine:
        x, y = (helper.make_tensor_value_info(name, kind, ["n"]) for name, kind in (("x", source), ("y", result)))
        graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=result)], "g", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
        return backend.load_graph(GraphBytes("g", memoryview(model), "w", memoryview(b"")))

    single, double = TensorProto.FLOAT, TensorProto.DOUBLE
    for source, result, room in (
        (double, single, 100),
        (single, double, 100),
        (double, double, 100),
        (single, single, 50),
    ):
        memory = np.full(200, 7, np.float32)
        mismatched = engine(source, result)
        mismatched.bind("x", backend.buffer((100,), np.float32))
        mismatched.bind("y", HostBuffer(memory[:room]))
        with pytest.raises(BackendError, match="graph g cannot be run"):
            mismatched.run()
        assert (memory[room:] == 7).all()


def test_binding_mistakes_are_named(backend: OnnxRuntimeBackend, pristine: Path) -> None:
    engine = backend.load_graph(open_bundle(pristine).graph("decode"))
    with pytest.raises(BackendError, match="graph decode has no tensor x; it has history, image, output_row"):
        engine.bind("x", backend.buffer((1,), np.float32))
    with pytest.raises(BackendError, match="nothing bound to history, image, output_row"):
        engine.run()
    with pytest.raises(ValueError, match=r"expected shape \[2\], got \[1\]"):
        backend.buffer((2,), np.float32).write(np.ones(1, np.float32))
    with pytest.raises(TypeError):
        HostBuffer(np.zeros(2, np.float32)).write(np.ones(2, np.float64))


def test_a_graph_that_is_no_graph_is_one_line(backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(BackendError) as caught:
        backend.load_graph(GraphBytes("bad", memoryview(b"not onnx"), "w", memoryview(b"")))
    assert "\n" not in str(caught.value)


SIDE = 640  # a matrix of more than a megabyte: what is smaller may be folded


def product(operator: str, dtype: type[np.generic]) -> tuple[GraphBytes, Array]:
    """y [1, SIDE] = the sums of w [SIDE, SIDE] for x of ones, by a matrix product or a convolution; w is external.

    An "island" is a product in single precision with a matrix in half.
    """
    w = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(dtype)
    shape = [SIDE, SIDE, 1, 1] if operator == "Conv" else [SIDE, SIDE]
    kind = helper.np_dtype_to_tensor_dtype(w.dtype)
    stored = np.ascontiguousarray(w.T if operator == "Conv" else w)  # a kernel's first axis is its output
    weights = TensorProto(name="w", data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "g.weights"), ("offset", "0"), ("length", str(w.nbytes))):
        weights.external_data.add(key=key, value=value)
    outside = [1, SIDE, 1, 1] if operator == "Conv" else [1, SIDE]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, outside) for name in "xy")
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node(operator, ["h", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
    ]
    if operator == "island":
        cast = helper.make_node("Cast", ["w"], ["single"], to=TensorProto.FLOAT)
        nodes = [cast, helper.make_node("MatMul", ["x", "single"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return GraphBytes("g", memoryview(model.SerializeToString()), "g.weights", memoryview(stored.tobytes())), stored


def bound(backend: OnnxRuntimeBackend, engine: Engine, operator: str) -> HostBuffer:
    """Ones for x, and the buffer of y."""
    shape = (1, SIDE, 1, 1) if operator == "Conv" else (1, SIDE)
    x, y = backend.buffer(shape, np.float32), backend.buffer(shape, np.float32)
    x.write(np.ones(shape, np.float32))
    engine.bind("x", x)
    engine.bind("y", y)
    return y


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        ("MatMul", np.float32),
        ("MatMul", np.float16),
        ("Conv", np.float32),
        ("Conv", np.float16),
        ("island", np.float16),
    ],
)
def test_mapped_weights_are_not_copied(
    tmp_path: Path, backend: OnnxRuntimeBackend, operator: str, dtype: type[np.generic], optimise: bool
) -> None:
    """What is written into the file afterwards is what the engine computes with: it has no copy. Others have one."""
    graph, stored = product(operator, dtype)
    path = tmp_path / "g.weights"
    sums = stored.astype(np.float32).sum(axis=1 if operator == "Conv" else 0)
    results = {}
    for mapped in (True, False):
        path.write_bytes(graph.weights)
        on_disk = GraphBytes("g", graph.model, "g.weights", map_file(tmp_path, "g.weights"))
        engine = backend.load_graph(on_disk, optimise=optimise or not mapped, mapped=mapped)
        y = bound(backend, engine, operator)
        engine.run()
        np.testing.assert_allclose(y.read().ravel(), sums, rtol=2e-3, atol=4e-3)  # rounded to half, where it is
        with path.open("r+b") as file:
            file.write((stored + stored).tobytes())
        engine.run()
        results[mapped] = y.read().ravel()
        engine.close()
    np.testing.assert_allclose(results[True], 2 * sums, rtol=2e-3, atol=8e-3)
    np.testing.assert_allclose(results[False], sums, rtol=2e-3, atol=4e-3)


def test_a_closed_engine_says_so(backend: OnnxRuntimeBackend) -> None:
    engine = backend.load_graph(product("MatMul", np.float32)[0], mapped=True)
    y = bound(backend, engine, "MatMul")
    engine.close()
    for act in (engine.run, lambda: engine.bind("y", y)):
        with pytest.raises(BackendError, match="graph g is closed: with little memory one request runs at a time"):
            act()
    engine.close()  # twice is no mistake


def test_an_older_onnxruntime_cannot_map(backend: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.30.0")
    graph, _ = product("MatMul", np.float32)
    with pytest.raises(BackendError, match=r"onnxruntime 1\.30\.0 copies weights; --memory low needs 1\.31 or newer"):
        backend.load_graph(graph, mapped=True)
    backend.load_graph(graph)
