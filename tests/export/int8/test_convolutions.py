"""8-bit convolutions hold numpy's model of them, and are only where they are worth it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from latentc.errors import LatentcError
from onnx import TensorProto, helper, numpy_helper

from export.int8.convolutions import (
    channel_scales,
    convolutions_of,
    errors_of_convolutions,
    quantise_convolutions,
    watched_values,
)
from export.int8.spans import Span, spans_of
from export.runner import run_model

CHANNELS, SIDE = 16, 6
RNG = np.random.default_rng(1)
WEIGHT = (RNG.standard_normal((CHANNELS, CHANNELS, 3, 3)) * 0.1).astype(np.float32)
WEIGHT[3] *= 50  # one channel far above the others: what a scale for each channel is for
BIAS = RNG.standard_normal(CHANNELS).astype(np.float32)
SAMPLES = [
    {"x": np.random.default_rng(seed).standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)} for seed in (2, 3)
]


def two_convolutions(channels: int = CHANNELS, **attributes: object) -> ir.Model:
    """x -> wide -> y, and x -> narrow (to 3 channels, as a decoder ends) -> picture."""
    rgb = np.ones((3, channels, 1, 1), np.float32)
    weight = WEIGHT[:, : channels // int(attributes.get("group", 1))]  # type: ignore[call-overload]
    shape = [1, channels, SIDE, SIDE]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["y"], name="wide", pads=[1] * 4, **attributes),
            helper.make_node("Conv", ["x", "rgb"], ["picture"], name="narrow"),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE]),
            helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
        ],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(BIAS, "b"), numpy_helper.from_array(rgb, "rgb")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def calibrated(model: ir.Model) -> dict[str, Span]:
    return spans_of(model, watched_values(convolutions_of(model.graph)), SAMPLES)


def rounded(array: np.ndarray, span: Span) -> np.ndarray:
    levels = np.clip(np.rint(array / span.scale) + span.zero_point, 0, 255)
    return ((levels - span.zero_point) * span.scale).astype(np.float32)


def test_the_numbers_are_those_of_rounded_inputs_weights_and_outputs() -> None:
    model = two_convolutions()
    spans = calibrated(model)
    quantise_convolutions(model, spans)
    scales = channel_scales(WEIGHT)
    weight = np.rint(WEIGHT / scales[:, None, None, None]) * scales[:, None, None, None]
    x = rounded(SAMPLES[0]["x"], spans["x"])
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(BIAS), padding=1
    ).numpy()
    actual = run_model(model, SAMPLES[0])["y"]
    # One level of the output: its rounding may fall to the other side.
    np.testing.assert_allclose(actual, rounded(expected, spans["y"]), rtol=0, atol=1.01 * spans["y"].scale)


def test_only_the_wide_one_is_rewritten_and_outputs_keep_their_names() -> None:
    model = two_convolutions()
    assert quantise_convolutions(model, calibrated(model)) == 1
    assert [node.op_type for node in model.graph] == ["QuantizeLinear", "QLinearConv", "DequantizeLinear", "Conv"]
    assert [value.name for value in model.graph.outputs] == ["y", "picture"]
    assert "w" not in model.graph.initializers
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_is_kept_is_left_alone() -> None:
    model = two_convolutions()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert quantise_convolutions(model, calibrated(model), {"wide"}) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_grouped_convolutions_stay_in_float32() -> None:
    assert not convolutions_of(two_convolutions(group=2).graph)


def test_each_channel_has_its_own_scale_and_no_pair_of_codes_saturates() -> None:
    """255 · (c0 + c1) within 16 bits, in both orders of a kernel: what AVX2 without VNNI adds up."""
    model = two_convolutions()
    quantise_convolutions(model, calibrated(model))
    weight = model.graph.initializers["w_int8"].const_value
    assert weight is not None
    codes = weight.numpy().astype(int)
    assert (np.abs(codes).max(axis=(1, 2, 3)) > 60).all()  # with one scale for all, all but channel 3 had 2 or 3 levels
    for rows in (codes.transpose(0, 2, 3, 1).reshape(CHANNELS, -1), codes.reshape(CHANNELS, -1)):
        pairs = rows.reshape(CHANNELS, -1, 2)
        for sign in (1, -1):
            assert np.clip(sign * pairs, 0, None).sum(axis=2).max() <= 128


def test_errors_are_of_the_output_and_leave_the_model_as_it_was() -> None:
    model = two_convolutions()
    spans = calibrated(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    errors = errors_of_convolutions(model, spans, SAMPLES)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    exact = [run_model(model, sample)["y"] for sample in SAMPLES]
    quantise_convolutions(model, spans)
    found = [run_model(model, sample)["y"] for sample in SAMPLES]
    worst = max(np.linalg.norm(f - e) / np.linalg.norm(e) for f, e in zip(found, exact, strict=True))
    assert errors["wide"].own == errors["wide"].carried == pytest.approx(worst, rel=1e-3)  # it is no branch
    assert 1e-3 < worst < 4e-2
    narrow = {name: Span(span.low / 8, span.high / 8) for name, span in spans.items()}
    assert errors_of_convolutions(two_convolutions(), narrow, SAMPLES)["wide"].own > 10 * worst


def test_a_branch_carries_less_than_it_has_wrong_and_the_stream_all_of_it() -> None:
    """x -> stream -> a, a + 0.1 · branch(a) -> after -> y: only the branch is small beside what it is added to."""
    model = two_convolutions()
    weight = numpy_helper.from_array((0.1 * WEIGHT).astype(np.float32), "small")
    proto = ir.to_proto(model)
    proto.graph.initializer.append(weight)
    del proto.graph.node[:]
    proto.graph.node.extend([
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="stream", pads=[1] * 4),
        helper.make_node("Conv", ["a", "small", "b"], ["c"], name="branch", pads=[1] * 4),
        helper.make_node("Add", ["c", "b4"], ["d"]),  # a bias is no sum
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Mul", ["e", "tenth"], ["f"]),
        helper.make_node("Add", ["a", "f"], ["g"]),
        helper.make_node("Conv", ["g", "small", "b"], ["y"], name="after", pads=[1] * 4),
        helper.make_node("Conv", ["y", "rgb"], ["picture"]),
    ])  # fmt: skip
    for name, array in (("b4", BIAS.reshape(1, -1, 1, 1)), ("tenth", np.float32(0.1))):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(proto)
    found = errors_of_convolutions(model, calibrated(model), SAMPLES)
    assert found["stream"].carried == found["stream"].own  # it is on both sides of the sum
    assert found["after"].carried == found["after"].own
    values = run_model(with_outputs(proto, "f", "g"), SAMPLES[0])
    share = np.linalg.norm(values["f"]) / np.linalg.norm(values["g"])
    assert share < 0.5
    assert found["branch"].carried / found["branch"].own == pytest.approx(share, rel=0.3)  # two samples, the worst each


def with_outputs(proto: onnx.ModelProto, *names: str) -> ir.Model:
    shape = [1, CHANNELS, SIDE, SIDE]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names)
    return ir.from_proto(proto)


def test_spans_hold_zero_and_all_samples_with_room() -> None:
    model = two_convolutions()
    spans = spans_of(model, watched_values(convolutions_of(model.graph)), SAMPLES, room=1.0)
    assert spans["x"].high == pytest.approx(max(sample["x"].max() for sample in SAMPLES))
    positive = Span(0.0, 2.0)
    assert positive.zero_point == 0
    assert Span(-2.0, 0.0).zero_point == 255
    assert Span(0.0, 0.0).scale > 0


def test_a_value_that_is_not_finite_is_an_error_that_names_it() -> None:
    model = two_convolutions()
    with pytest.raises(LatentcError, match="'x' is inf"):
        spans_of(model, watched_values(convolutions_of(model.graph)), [{"x": np.full_like(SAMPLES[0]["x"], np.inf)}])
