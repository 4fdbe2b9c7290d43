"""A graph by segments is the graph: same numbers, each weight read once a run, never more of them than was allowed."""

import numpy as np
import onnx_ir as ir
import pytest

from export.runner import Runner
from export.segments import segments_of
from tests.export.precision.graphs import matrix

WIDTH, LAYERS = 64, 6
WEIGHT_BYTES = 4 * WIDTH * WIDTH


class Reads:
    """Counts how often each weight of a chain is read."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def chain(self, dtype: type[np.generic] = np.float32) -> ir.Model:
        """x -> LAYERS times MatMul and Tanh, with a residual from the first to the last."""
        values = {f"w{i}": matrix(i, WIDTH, WIDTH, scale=0.2).astype(dtype) for i in range(LAYERS)}
        kind = ir.TensorType(ir.DataType.FLOAT if dtype is np.float32 else ir.DataType.FLOAT16)
        x = ir.Value(name="x", shape=ir.Shape(["rows", WIDTH]), type=kind)
        nodes, value, first = [], x, None
        weights = []
        for name, array in values.items():
            weight = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind)
            weight.const_value = ir.LazyTensor(
                lambda name=name, array=array: self._read(name, array),
                dtype=kind.dtype, shape=ir.Shape(array.shape), name=name,
            )  # fmt: skip
            weights.append(weight)
            nodes += [ir.node("MatMul", [value, weight]), ir.node("Tanh", [])]
            nodes[-1] = ir.node("Tanh", nodes[-2].outputs)
            value = nodes[-1].outputs[0]
            first = first or value
        nodes.append(ir.node("Add", [value, first]))
        output = nodes[-1].outputs[0]
        output.name, output.type, output.shape = "y", kind, ir.Shape(["rows", WIDTH])
        graph = ir.Graph([x], [output], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="chain")
        model = ir.Model(graph, ir_version=10)
        ir.passes.common.NameFixPass()(model)
        return model

    def _read(self, name: str, array: np.ndarray) -> ir.Tensor:
        self.names.append(name)
        return ir.Tensor(array, name=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("most_bytes", [1, WEIGHT_BYTES, 2 * WEIGHT_BYTES + 10, 10**9])
def test_numbers_do_not_depend_on_the_segments(most_bytes: int, dtype: type[np.generic]) -> None:
    x = {"x": matrix(99, 5, WIDTH).astype(dtype)}
    # ONNX Runtime's CPU keeps half-precision chains in float32 (ADR 0011); what passes between segments is rounded.
    tolerance = 0 if dtype is np.float32 else 2e-3
    with Runner(Reads().chain(dtype)) as whole, Runner(Reads().chain(dtype), most_bytes) as runner:
        np.testing.assert_allclose(runner.run(x)["y"], whole.run(x)["y"], rtol=0, atol=tolerance)
        assert runner.run(x)["y"].std() > 0.1


@pytest.mark.parametrize(("most_bytes", "count"), [(WEIGHT_BYTES, 6), (2 * WEIGHT_BYTES, 3), (4 * WEIGHT_BYTES, 2)])
def test_a_segment_holds_no_more_than_was_allowed(most_bytes: int, count: int) -> None:
    model = Reads().chain()
    segments = segments_of(model, most_bytes)
    assert len(segments) == count
    for segment in segments:
        assert sum(value.const_value.nbytes for value in segment.initializers) <= most_bytes
    assert [node for segment in segments for node in segment.nodes] == list(model.graph)


def test_weights_are_read_once_for_all_samples_and_shown_as_they_are() -> None:
    reads, seen = Reads(), {}
    samples = [{"x": matrix(seed, 3, WIDTH)} for seed in range(4)]
    with Runner(reads.chain(), WEIGHT_BYTES, on_weight=lambda name, array: seen.update({name: array.copy()})) as runner:
        together = runner.run_all(samples)
        assert sorted(reads.names) == [f"w{i}" for i in range(LAYERS)]
        np.testing.assert_array_equal(seen["w3"].reshape(WIDTH, WIDTH), matrix(3, WIDTH, WIDTH, scale=0.2))
        for sample, outputs in zip(samples, together, strict=True):
            np.testing.assert_array_equal(outputs["y"], runner.run(sample)["y"])


def test_a_sequence_does_not_pass_between_segments() -> None:
    """torch's split before cleaning: SplitToSequence and SequenceAt; only a tensor can be handed over."""
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    chain (float[2, 4] x) => (float[2, 2] y)
    <float[4, 4] a = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[2, 2] b = {1,2,3,4}, int64 two = {2},
     int64 one = {1}>
    {
        h = MatMul (x, a)
        parts = SplitToSequence <axis = 1> (h, two)
        first = SequenceAt (parts, one)
        z = MatMul (first, b)
        y = Tanh (z)
    }
    """
    model = ir.from_onnx_text(text)
    x = {"x": np.eye(2, 4, dtype=np.float32) / 100}
    padded = _with_large_weights(model)
    with Runner(padded) as whole, Runner(padded, 1) as runner:
        np.testing.assert_array_equal(runner.run(x)["y"], whole.run(x)["y"])
    assert len(segments_of(padded, 1)) > 1


def _with_large_weights(model: ir.Model) -> ir.Model:
    """Weights below 1 KiB are never cut at: these two become larger by zeros that change nothing."""
    for name, padding in (("a", ((0, 0), (0, 252))), ("b", ((0, 126), (0, 126)))):
        value = model.graph.initializers[name]
        padded = np.pad(value.const_value.numpy(), padding)
        value.const_value, value.shape = ir.tensor(padded, name=name), ir.Shape(padded.shape)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    two = model.graph.initializers["two"]
    two.const_value = ir.tensor(np.array(128, np.int64), name="two")
    return model
