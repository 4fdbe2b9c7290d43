"""The split: with the true residual it is the whole again, with another it is not; and what cannot be split says so."""

import numpy as np
import onnx_ir as ir
import pytest
from latentc.errors import LatentcError
from latentc.parity import relative_l2

from export.runner import run_model
from export.step_cache.boundaries import blocks_of
from export.step_cache.split import LATENT_INPUTS, split_step
from tests.export.step_cache.graphs import FLOAT, HALF, WIDTH, Stream, inputs, single


@pytest.mark.parametrize(("dtype", "bound"), [(FLOAT, 1e-6), (HALF, 2e-3)])
def test_with_the_true_residual_it_is_the_whole(dtype: ir.DataType, bound: float) -> None:
    model = single(5, dtype)
    before = ir.to_proto(model).SerializeToString()
    split = split_step(model, ["blocks"])
    assert (split.first, split.end, split.count, split.residuals) == (1, 4, 5, ("residual_0",))
    assert ir.to_proto(model).SerializeToString() == before, "the graph that is split is left alone"
    given = inputs()
    whole = run_model(model, given)["prediction"]
    full = run_model(split.full, given)
    np.testing.assert_array_equal(full["prediction"], whole)
    again = run_model(split.cached, given | {"residual_0": full["residual_0"]})["prediction"]
    assert relative_l2(again, whole) <= bound
    # Negative controls: without the residual, and with that of another step, it is another prediction.
    assert (
        relative_l2(run_model(split.cached, given | {"residual_0": 0 * full["residual_0"]})["prediction"], whole) > 0.05
    )
    other = run_model(split.full, inputs(1))["residual_0"]
    assert relative_l2(run_model(split.cached, given | {"residual_0": other})["prediction"], whole) > 0.05
    assert full["residual_0"].dtype == np.float32


def test_the_middle_is_gone_and_all_weights_are_the_same_tensors() -> None:
    split = split_step(single(5), ["blocks"])
    kept = set(split.cached.graph.initializers)
    assert {"net.blocks.0.w", "net.blocks.4.w", "net.out"} <= kept
    assert not kept & {f"net.blocks.{number}.w" for number in (1, 2, 3)}
    for name in kept:
        assert split.cached.graph.initializers[name].const_value is split.full.graph.initializers[name].const_value


def test_an_input_of_the_middle_alone_is_no_input_any_more() -> None:
    stream = Stream()
    hidden = stream.block("blocks.0", stream.hidden)
    extra = ir.Value(name="text", shape=ir.Shape(["rows", WIDTH]), type=ir.TensorType(FLOAT))
    stream.inputs["text"] = extra
    hidden = stream.op("Add", hidden, stream.op("Tanh", extra, scope="blocks.1"), scope="blocks.1")
    model = stream.model(stream.block("blocks.2", hidden))
    split = split_step(model, ["blocks"])
    assert [value.name for value in split.cached.graph.inputs] == ["history", "input_row", "shift", "residual_0"]


def test_a_cast_belongs_to_the_block_that_reads_it() -> None:
    """In half precision a norm reads the stream through a cast; the stream is one value all the same."""
    blocks = blocks_of(single(4, HALF), ["blocks"], LATENT_INPUTS)
    assert [len(blocks.boundary(number).stream) for number in range(1, 5)] == [1] * 4
    assert all(value.dtype is HALF for number in range(1, 5) for value in blocks.boundary(number).stream)


def test_two_streams_pair_up_by_shape_whatever_their_order() -> None:
    """As FLUX: a list of double blocks, then one of single blocks, in which text comes first."""
    stream = Stream()
    wide = stream.op("MatMul", stream.hidden, stream.matrix("in", WIDTH, 6), scope="net", width=6)
    narrow = stream.hidden
    for number, scope in enumerate(("double.0", "double.1", "single.0", "single.1")):
        mixed = stream.op("MatMul", narrow, stream.matrix(f"{scope}.a", WIDTH, 6), scope=scope, width=6)
        back = stream.op("MatMul", wide, stream.matrix(f"{scope}.b", 6, WIDTH), scope=scope)
        if number < 2:
            narrow, wide = (
                stream.op("Add", narrow, back, scope=scope),
                stream.op("Add", wide, mixed, scope=scope, width=6),
            )
        else:
            wide, narrow = (
                stream.op("Add", wide, mixed, scope=scope, width=6),
                stream.op("Add", narrow, back, scope=scope),
            )
    model = stream.model(stream.op("MatMul", wide, stream.matrix("out", 6, WIDTH), scope="net"))
    split = split_step(model, ["double", "single"])
    assert (split.first, split.end, split.count) == (1, 3, 4)
    full = run_model(split.full, inputs())
    assert sorted(full[name].shape[1] for name in split.residuals) == [WIDTH, 6]
    again = run_model(split.cached, inputs() | {name: full[name] for name in split.residuals})
    assert relative_l2(again["prediction"], full["prediction"]) <= 1e-6


def test_the_widest_places_that_pair_up_are_taken() -> None:
    """A stream that becomes wider on the way (a U-Net's level) can be cut on one side of that only."""
    stream = Stream()
    hidden = stream.block("blocks.0", stream.hidden)
    hidden = stream.block("blocks.1", hidden)
    hidden = stream.op("MatMul", hidden, stream.matrix("w2", WIDTH, 6), scope="blocks.2", width=6)
    hidden = stream.op("Tanh", hidden, scope="blocks.3", width=6)
    model = stream.model(stream.op("MatMul", hidden, stream.matrix("w4", 6, WIDTH), scope="blocks.4"))
    assert (split_step(model, ["blocks"]).first, split_step(model, ["blocks"]).end) == (1, 2)


def test_a_stream_that_never_has_the_same_shape_is_refused() -> None:
    stream = Stream()
    hidden, width = stream.hidden, WIDTH
    for number in range(4):
        hidden = stream.op(
            "MatMul", hidden, stream.matrix(f"w{number}", width, width + 1), scope=f"blocks.{number}", width=width + 1
        )
        width += 1
    with pytest.raises(LatentcError, match="no two places between them with a stream of the same shapes"):
        split_step(stream.model(hidden), ["blocks"])


@pytest.mark.parametrize("lists", [["layers"], ["block"], ["locks"]])
def test_lists_that_are_not_there_are_refused(lists: list[str]) -> None:
    with pytest.raises(LatentcError, match="the denoiser has 0 blocks"):
        split_step(single(5), lists)


def test_two_blocks_have_no_middle() -> None:
    with pytest.raises(LatentcError, match="the denoiser has 2 blocks"):
        split_step(single(2), ["blocks"])


def test_a_middle_that_is_read_around_the_stream_is_refused() -> None:
    """A size that the last block takes of a value of the middle would bring all of the middle back."""
    stream = Stream()
    hidden = stream.block("blocks.0", stream.hidden)
    inside = stream.block("blocks.1", hidden)
    last = stream.block("blocks.2", inside)
    added = inside.producer().inputs[1]  # type: ignore[union-attr]
    assert added is not None
    shape = stream.op("Shape", added, scope="blocks.2", width=None)
    shape.type = ir.TensorType(ir.DataType.INT64)
    model = stream.model(stream.op("Reshape", last, shape, scope="blocks.2"))
    with pytest.raises(LatentcError, match=r"(are read behind them|no two places)"):
        split_step(model, ["blocks"])
