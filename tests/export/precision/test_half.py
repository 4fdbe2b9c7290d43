"""Half precision as a whole: interface, numbers against an explicit bound, islands and casts, negative controls."""

import numpy as np
import onnx_ir as ir
import pytest
from latentc.errors import LatentcError

from export.precision import Island, to_half, with_every_result_rounded
from tests.export.precision.graphs import (
    WIDTH,
    fused_step,
    fused_step_feed,
    matrix,
    overflowing,
    parsed,
    relative_error,
    run,
)

# Four contractions in a row, each rounding weights and result to 11 bits (2^-12 a rounding).
STEP_BOUND = 2e-3


def test_keeps_the_interface_and_the_numbers() -> None:
    want = run(fused_step(), fused_step_feed())
    result = to_half(fused_step(), [fused_step_feed(seed=1)])
    graph = result.model.graph
    assert [(v.name, v.dtype) for v in (*graph.inputs, *graph.outputs)] == [
        ("history", ir.DataType.FLOAT),
        ("input_row", ir.DataType.FLOAT),
        ("guidance_weights", ir.DataType.FLOAT),
        ("prediction", ir.DataType.FLOAT),
    ]
    got = run(with_every_result_rounded(result.model), fused_step_feed())
    assert 0 < relative_error(got, want) < STEP_BOUND
    assert relative_error(run(result.model, fused_step_feed()), want) < STEP_BOUND


def test_a_weight_perturbed_by_one_percent_fails_the_bound() -> None:
    want = run(fused_step(), fused_step_feed())
    damaged = fused_step()
    weight = damaged.graph.initializers["w_out"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name="w_out")
    got = run(with_every_result_rounded(to_half(damaged).model), fused_step_feed())
    assert relative_error(got, want) > STEP_BOUND


def test_solver_guidance_and_norm_are_islands_and_weights_are_half() -> None:
    result = to_half(fused_step())
    reasons = {row.op_type: row.reason for row in result.report.islands}
    assert "guidance" in next(r.reason for r in reversed(result.report.islands) if r.op_type == "Einsum")
    assert "before the first weight" in next(r.reason for r in result.report.islands if r.op_type == "Einsum")
    assert reasons["LayerNormalization"] == "normalisation statistics"
    stored = {name: value.const_value.dtype for name, value in result.model.graph.initializers.items()}
    assert all(stored[name] is ir.DataType.FLOAT16 for name in ("w_in", "w_up", "w_down", "w_out"))
    assert stored["gamma"] is ir.DataType.FLOAT  # read by an island only: stored once, wide


def test_no_value_is_cast_there_and_back() -> None:
    graph = to_half(fused_step()).model.graph
    casts = [node for node in graph if node.op_type == "Cast"]
    assert len(casts) == len({(node.inputs[0], node.outputs[0].dtype) for node in casts}), "two casts of one value"
    assert not [node for node in casts if node.inputs[0].producer() in casts], "a cast of a cast"
    # in: x; norm: h there, n back; out: o. The reshape before the guidance joins it without a cast of its own.
    assert len(casts) == 4


def test_without_calibration_the_overflow_is_infinite_and_with_it_is_not() -> None:
    feed = {"x": matrix(5, 4, WIDTH, scale=1.0)}
    want = run(overflowing(), feed)
    # Negative control: the same graph, the rules alone.
    unguarded = run(with_every_result_rounded(to_half(overflowing()).model), feed)
    assert not np.isfinite(unguarded).all()
    result = to_half(overflowing(), [feed])
    guarded = run(with_every_result_rounded(result.model), feed)
    assert relative_error(guarded, want) < STEP_BOUND
    found = {row.node: row for row in result.report.islands if row.reason.startswith("calibration")}
    assert "Add_2" in found
    assert found["Add_2"].peak == pytest.approx(np.abs(2 * 6e4 * (feed["x"] @ matrix(1, WIDTH, WIDTH))).max(), rel=1e-5)


def test_calibration_keeps_nothing_where_nothing_is_large() -> None:
    result = to_half(fused_step(), [fused_step_feed()])
    assert not [row for row in result.report.islands if row.reason.startswith("calibration")]


def test_a_lower_share_of_the_range_finds_more() -> None:
    result = to_half(fused_step(), [fused_step_feed()], peak_share=1e-5)  # 0.66
    assert [row for row in result.report.islands if row.reason.startswith("calibration")]


def test_a_familys_island_stays_wide_with_its_reason() -> None:
    result = to_half(fused_step(), islands=[Island(r"^w_up$", "its output is known to overflow")])
    row = next(row for row in result.report.islands if row.reason == "its output is known to overflow")
    assert row.op_type == "MatMul"
    assert result.model.graph.initializers["w_up"].const_value.dtype is ir.DataType.FLOAT


def test_an_island_is_found_by_its_module_path() -> None:
    model = fused_step()
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'blocks.0', 'blocks.0.act', 'sigmoid']"
    result = to_half(model, islands=[Island(r"blocks\.0\.act", "wide by wish")])
    assert [row.op_type for row in result.report.islands if row.reason == "wide by wish"] == ["Sigmoid"]


def test_an_island_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(LatentcError, match="matches no node"):
        to_half(fused_step(), islands=[Island("no_such_layer", "known overflow")])
    with pytest.raises(ValueError, match="has no reason"):
        Island("w_up", " ")


def test_a_graph_that_is_half_already_is_refused() -> None:
    with pytest.raises(LatentcError, match="trace in float32"):
        to_half(to_half(fused_step()).model)


def test_weights_that_half_cannot_hold_are_named_and_stay_wide() -> None:
    model = fused_step()
    weight = matrix(1, WIDTH, WIDTH)
    weight[0, :3] = 1e5
    model.graph.initializers["w_in"].const_value = ir.tensor(weight, name="w_in")
    tiny = matrix(2, WIDTH, WIDTH, scale=1e-6)
    tiny[0, 0] = 1e-9
    model.graph.initializers["w_up"].const_value = ir.tensor(tiny, name="w_up")
    result = to_half(model, [fused_step_feed()])  # the large weight makes large values
    fits = {fit.name: fit for fit in result.report.weights}
    assert set(fits) == {"w_in", "w_up"}
    assert (fits["w_in"].num_overflow, fits["w_in"].peak) == (3, pytest.approx(1e5))
    assert fits["w_up"].num_zero >= 1
    assert fits["w_up"].small_share > 0.9
    assert result.model.graph.initializers["w_in"].const_value.dtype is ir.DataType.FLOAT
    assert np.isfinite(run(result.model, fused_step_feed())).all()


def test_a_resize_keeps_its_scales_in_float32() -> None:
    model = parsed(
        """
        h = Conv<kernel_shape=[1, 1]>(x, w)
        big = Resize<mode="nearest">(h, empty, scales)
        y = Conv<kernel_shape=[1, 1]>(big, w)
        """,
        inputs="float[1, 4, 4, 4] x",
        output="float[1, 4, 8, 8] y",
        constants={
            "w": matrix(1, 4, 4, 1, 1),
            "empty": np.zeros(0, np.float32),
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
    )
    feed = {"x": matrix(2, 1, 4, 4, 4)}
    want = run(model, feed)
    graph = to_half(model).model.graph
    resize = next(node for node in graph if node.op_type == "Resize")
    assert resize.inputs[0].dtype is ir.DataType.FLOAT16
    assert resize.inputs[2].dtype is ir.DataType.FLOAT
    assert relative_error(run(ir.Model(graph, ir_version=8), feed), want) < STEP_BOUND


def test_an_attention_mask_of_the_lowest_float_stays_finite() -> None:
    """transformers masks with finfo.min: minus infinity in half, and not a number in a row that is all masked."""
    constants = {
        "w": matrix(1, WIDTH, WIDTH),
        "zero": np.array(0, np.float32),
        "low": np.array(np.finfo(np.float32).min, np.float32),
    }
    model = parsed(
        "s = MatMul(x, w) m = Where(keep, zero, low) a = Add(s, m) p = Softmax(a) y = MatMul(p, w)",
        inputs="float[4, 16] x, bool[4, 16] keep",
        output="float[4, 16] y",
        constants=constants,
    )
    keep = np.random.default_rng(0).random((4, WIDTH)) > 0.5
    keep[0] = False
    feed = {"x": matrix(2, 4, WIDTH), "keep": keep}
    want = run(model, feed)
    result = to_half(model)  # found without calibration: the constant does not fit
    assert [fit.name for fit in result.report.weights] == ["low"]
    assert relative_error(run(with_every_result_rounded(result.model), feed), want) < STEP_BOUND
