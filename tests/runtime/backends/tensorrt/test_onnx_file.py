"""The reader of ONNX files, against the onnx package, and on damaged bytes."""

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latentc.backends.tensorrt.onnx_file import read_onnx
from latentc.errors import BundleError
from onnx import TensorProto, helper, numpy_helper


def test_lists_equal_those_of_the_onnx_package(random_dit_bundle: Path) -> None:
    paths = sorted((random_dit_bundle / "graphs").glob("*.onnx"))
    assert len(paths) == 3
    for path in paths:
        data = path.read_bytes()
        graph = onnx.load_model_from_string(data).graph
        found = read_onnx(memoryview(data), path.stem)
        assert [(node.op_type, node.outputs) for node in found.nodes] == [
            (n.op_type, tuple(n.output)) for n in graph.node
        ]
        assert [node.name for node in found.nodes] == [node.name or node.output[0] for node in graph.node]
        assert found.inputs == [value.name for value in graph.input]
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        assert found.types == kinds
        assert found.locations() == {f"{path.stem}.weights"}
        ours = {t.name: (t.data_type, t.dims, t.location, t.offset) for t in found.initialisers}
        for tensor in graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            expected = (tensor.data_type, tuple(tensor.dims), external.get("location"), int(external.get("offset", 0)))
            assert ours[tensor.name] == expected


def test_weights_in_nested_graphs_are_found() -> None:
    inner = numpy_helper.from_array(np.ones(4, np.float32), "w")
    inner.ClearField("raw_data")
    inner.data_location = TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="elsewhere")
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "b", [], [out], [inner])
    true = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    nodes = [helper.make_node("Constant", [], ["t"], value=true)]
    nodes.append(helper.make_node("If", ["t"], ["z"], then_branch=branch, else_branch=branch))
    model = helper.make_model(helper.make_graph(nodes, "g", [], [out]))
    found = read_onnx(memoryview(model.SerializeToString()), "g")
    assert found.locations() == {"elsewhere"}
    assert [node.op_type for node in found.nodes] == ["Constant", "If"]


@pytest.mark.parametrize("data", [b"\x3a\xff", b"\x3a\x05ab", b"\xff" * 20, b"\x3b", b"\x38\x01"])
def test_damaged_files_are_one_error(data: bytes) -> None:
    with pytest.raises(BundleError, match="graph g is no ONNX model: "):
        read_onnx(memoryview(data), "g")


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_no_flipped_byte_does_more_than_raise(toy_graph: bytes, position: int, value: int) -> None:
    damaged = bytearray(toy_graph)
    damaged[position % len(damaged)] = value
    with contextlib.suppress(BundleError):
        read_onnx(memoryview(bytes(damaged)), "g")


@pytest.fixture(scope="module")
def toy_graph(pristine: Path) -> bytes:
    return (pristine / "graphs/denoise.onnx").read_bytes()
