"""Partition and recomposition, on random graphs and on those that show one trap each."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.hoist import CostModel, Feed, InputClass, NotALoopError, partition, rows
from tests.export.hoist.compose import largest_error
from tests.export.hoist.graphs import DIMS, LOOP, PROMPT, SCHEDULE, TRAFFIC_ONLY, adaln, cut, operators, parsed
from tests.export.hoist.random_graphs import RandomStep, random_steps

TOLERANCE = 1e-6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    random_steps(),
    st.fixed_dictionaries(dict.fromkeys("xtp", st.sampled_from(InputClass))),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
)
def test_a_random_step_is_the_composition_of_its_parts(
    step: RandomStep, inputs: dict[str, InputClass], held_weight: float, equal_rows: bool
) -> None:
    model = step.model
    before = str(model)
    cost_model = CostModel(DIMS, held_weight=held_weight, part_bytes=0)
    try:
        parts = partition(model, inputs, cost_model, equal_rows=equal_rows)
    except NotALoopError:
        assert LOOP not in inputs.values() or inputs["x"] is not LOOP
        return
    assert str(model) == before
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE
    report = parts.report
    assert report.cost <= report.cost_of_nothing
    assert report.cost <= report.cost_of_all


@pytest.mark.parametrize("classes", list(product(InputClass, repeat=3)))
def test_every_assignment_of_the_classes(classes: tuple[InputClass, ...]) -> None:
    inputs = dict(zip("xtp", classes, strict=True))
    model = parsed(
        """(float[batch, 4] x, float[batch, 4] t, float[batch, 4] p) => (float[batch, 4] y) {
            a = MatMul(x, w_x)  b = MatMul(t, w_t)  c = MatMul(p, w_p)
            ab = Add(a, b)  bc = Mul(b, c)  ca = Add(c, a)
            d = MatMul(ab, w_x)  e = MatMul(bc, w_t)  f = MatMul(ca, w_p)
            de = Add(d, e)  y = Add(de, f)
        }""",
        w_x=(4, 4), w_t=(4, 4), w_p=(4, 4),
    )  # fmt: skip
    if LOOP not in classes:
        with pytest.raises(NotALoopError):
            partition(model, inputs, TRAFFIC_ONLY)
        return
    assert largest_error(partition(model, inputs, TRAFFIC_ONLY), inputs, {"batch": 3}) <= TOLERANCE


def test_the_modulation_leaves_and_the_rest_stays() -> None:
    parts = cut(adaln(), x=LOOP, t=SCHEDULE, p=PROMPT)
    assert operators(parts.denoise) == ["MatMul", "Mul"]
    assert [value.name for value in parts.denoise.graph.inputs] == ["x", "schedule_row"]
    assert parts.layout.rows_per_step == "batch"
    assert parts.layout.width == 4
    assert {item.name: item.feed for item in parts.layout.schedule_inputs}["t"] is Feed.STACK


def test_without_the_prompt_one_row_a_step_is_enough() -> None:
    model = parsed(
        "(float[batch, 4] x, float[batch] t) => (float[batch, 4] y) <int64[1] one = {1}> {"
        "e = Unsqueeze(t, one) h = MatMul(e, w_t) a = Sin(h) m = MatMul(a, w_m) n = MatMul(x, w_x) y = Mul(n, m)}",
        w_t=(1, 16), w_m=(16, 4), w_x=(4, 4),
    )  # fmt: skip
    inputs = {"x": LOOP, "t": SCHEDULE}
    parts = partition(model, inputs, TRAFFIC_ONLY)
    assert parts.layout.rows_per_step == "1"
    assert largest_error(parts, inputs, {"batch": 5}) <= TOLERANCE
    apart = partition(model, inputs, TRAFFIC_ONLY, equal_rows=False)
    assert apart.layout.rows_per_step == "batch"
    assert largest_error(apart, inputs, {"batch": 5}) <= TOLERANCE


def test_a_weight_that_two_parts_use_is_one_tensor() -> None:
    model = adaln()
    model.graph.initializers["w_m"].replace_all_uses_with(model.graph.initializers["w_m"])
    shared = parsed(
        "(float[batch, 4] x, float[batch, 4] t) => (float[batch, 4] y) {"
        "h = MatMul(t, w) s = Sin(h) u = MatMul(s, w) n = MatMul(x, w) y = Mul(n, u)}",
        w=(4, 4),
    )
    parts = cut(shared, x=LOOP, t=SCHEDULE)
    assert parts.schedule is not None
    tensor = shared.graph.initializers["w"].const_value
    assert parts.schedule.graph.initializers["w"].const_value is tensor
    assert parts.denoise.graph.initializers["w"].const_value is tensor


def test_weights_are_never_read() -> None:
    def unread() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    model = adaln()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype is ir.DataType.FLOAT:
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.LazyTensor(unread, dtype=tensor.dtype, shape=shape, name=value.name)
    inputs = {"x": LOOP, "t": SCHEDULE, "p": PROMPT}
    parts = partition(model, inputs, CostModel(DIMS, part_bytes=0), check_rows=False)
    assert parts.schedule is not None
    assert parts.report.rows_checked == "structurally"


def test_the_same_graph_is_cut_the_same_way() -> None:
    inputs = {"x": LOOP, "t": SCHEDULE, "p": PROMPT}
    first, second = (partition(adaln(), inputs, TRAFFIC_ONLY) for _ in range(2))
    assert first.layout == second.layout
    assert first.report == second.report
    for a, b in ((first.schedule, second.schedule), (first.denoise, second.denoise)):
        assert a is not None
        assert b is not None
        assert ir.to_proto(a).SerializeToString(deterministic=True) == ir.to_proto(b).SerializeToString(
            deterministic=True
        )


def test_a_broadcast_crosses_before_it_is_wide() -> None:
    model = parsed(
        "(float[batch, 64, 4] x, float[batch, 1, 4] p) => (float[batch, 64, 4] y) <int64[3] wide = {1, 64, 1}> {"
        "h = MatMul(p, w) e = Expand(h, wide) y = Mul(x, e)}",
        w=(4, 4),
    )
    parts = cut(model, x=LOOP, p=PROMPT)
    assert operators(parts.denoise) == ["Expand", "Mul"]
    assert parts.layout.prompt_tensors[0].value == "h"


def test_a_wide_table_costs_more_than_the_weights_that_it_saves() -> None:
    text = (
        "(float[batch, 64, 8] x, float[batch, 1, 1] t, float[batch, 64, 8] p) => (float[batch, 64, 8] y) {"
        "s = Mul(p, t) k = MatMul(s, w) y = Add(x, k)}"
    )
    wide = cut(parsed(text, w=(8, 8)), CostModel(DIMS, part_bytes=0), x=LOOP, t=SCHEDULE, p=PROMPT)
    assert wide.schedule is None
    assert [item.value for item in wide.report.cheaper] == ["k"]


def test_a_useless_part_is_not_made() -> None:
    model = parsed("(float[batch, 4] x, float[4] p) => (float[batch, 4] y) { n = Neg(p) y = Add(x, n)}")
    assert cut(model, CostModel(DIMS), x=LOOP, p=PROMPT).prompt is None
    assert cut(model, x=LOOP, p=PROMPT).prompt is not None


def test_a_size_is_rebuilt_where_its_tensor_is_not() -> None:
    model = parsed(
        "(float[batch, 4] x, float[batch] t, float[batch, 4] p) => (float[batch, 4] y) <int64[1] one = {1}> {"
        "q = MatMul(x, w) size = Shape(q) e = Unsqueeze(t, one) wide = Expand(e, size) m = MatMul(wide, w)"
        " c = Mul(m, p) s = Sin(c) y = Mul(q, s)}",
        w=(4, 4),
    )
    inputs = {"x": LOOP, "t": SCHEDULE, "p": PROMPT}
    parts = partition(model, inputs, TRAFFIC_ONLY)
    assert operators(parts.denoise) == ["MatMul", "Mul"]
    assert "Shape" in operators(parts.schedule)
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE


DECLINES = {
    "Softmax .* works along the rows": "h = MatMul(t, w) m = Softmax <axis = 0> (h) s = MatMul(m, w)",
    "ReduceSum .* does not keep the rows": "h = MatMul(t, w) m = ReduceSum <keepdims = 1> (h, zeros) s = MatMul(m, w)",
    "CumSum .* works along the rows": "h = MatMul(t, w) m = CumSum(h, zero) s = MatMul(m, w)",
    "does not keep the rows on the first axis": "h = MatMul(t, w) m = Transpose(h) g = MatMul(m, h) s = MatMul(t, g)",
    "without a rule": "h = MatMul(t, w) m = LpNormalization(h) s = MatMul(m, w)",
    "Slice .* does not keep the rows": "h = MatMul(t, w) m = Slice(h, zeros, ones, zeros) s = MatMul(m, w)",
    "computes with a size that changes when steps are stacked": "h = MatMul(t, w) n = Shape <start = 0, end = 1> (x) "
    "f = Cast <to = 1> (n) m = Mul(h, f) s = MatMul(m, w)",
}


@pytest.mark.parametrize("reason", DECLINES)
def test_what_mixes_steps_stays_and_says_why(reason: str) -> None:
    model = parsed(
        "(float[batch, 4] x, float[batch, 4] t) => (float[batch, 4] y) "
        f"<int64 zero = {{0}}, int64[1] zeros = {{0}}, int64[1] ones = {{1}}> {{ {DECLINES[reason]} y = Mul(x, s) }}",
        w=(4, 4),
    )
    inputs = {"x": LOOP, "t": SCHEDULE}
    parts = partition(model, inputs, TRAFFIC_ONLY, equal_rows=False)
    assert any(re.search(reason, item.reason) for item in parts.report.declined), parts.report.declined
    assert "s" in {value.name for node in parts.denoise.graph for value in node.outputs}
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE


@pytest.mark.parametrize("check_rows", [True, False])
@pytest.mark.parametrize(
    "mix", ["r = ReduceSum <keepdims = 1> (t, ones)", "k = Softmax(t) r = ReduceMax <keepdims = 1> (k, ones)"]
)
def test_one_row_a_step_is_not_enough_for_what_counts_the_rows(mix: str, check_rows: bool) -> None:
    model = parsed(
        "(float[branches, 4] x, float[branches, batch] t) => (float[branches, 4] y) <int64[1] ones = {1}> {"
        f"{mix} h = MatMul(r, w_up) s = Sin(h) m = MatMul(s, w_down) y = Mul(x, m) }}",
        w_up=(1, 16), w_down=(16, 4),
    )  # fmt: skip
    inputs = {"x": LOOP, "t": SCHEDULE}
    cost_model = CostModel({"branches": 2, "batch": 2}, held_weight=0.0, part_bytes=0)
    parts = partition(model, inputs, cost_model, check_rows=check_rows)
    assert parts.layout.rows_per_step == "branches"  # with all rows of a step it is right
    assert largest_error(parts, inputs, {"branches": 2, "batch": 3}) <= TOLERANCE


def test_the_numerical_check_finds_what_the_rules_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "why_rows_mix", lambda *_: None)  # the negative control: no structural rule at all
    model = parsed(
        "(float[batch, 4] x, float[batch, 4] t) => (float[batch, 4] y) {"
        "h = MatMul(t, w) m = Softmax <axis = 0> (h) s = MatMul(m, w) k = Sin(s) y = Mul(x, k) }",
        w=(4, 4),
    )
    inputs = {"x": LOOP, "t": SCHEDULE}
    parts = partition(model, inputs, TRAFFIC_ONLY, equal_rows=False)
    assert any("stacked steps differs from that of single steps" in item.reason for item in parts.report.declined)
    assert operators(parts.denoise)[0] == "Softmax"
    assert [slot.value for slot in parts.layout.slots] == ["h"]
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE


def test_a_timestep_that_cannot_be_stacked_stays_and_the_prompt_still_leaves() -> None:
    model = parsed(
        "(float[batch, 4] x, float t, float[batch, 4] p) => (float[batch, 4] y) {"
        "c = MatMul(p, w) s = Sin(t) m = Mul(c, s) y = Mul(x, m) }",
        w=(4, 4),
    )
    inputs = {"x": LOOP, "t": SCHEDULE, "p": PROMPT}
    parts = partition(model, inputs, TRAFFIC_ONLY)
    assert parts.schedule is None
    assert parts.prompt is not None
    assert any("no common symbolic leading dim (t [])" in item.reason for item in parts.report.declined)
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE


@pytest.mark.parametrize(("to", "crosses"), [(7, False), (11, False), (10, True), (9, True)])
def test_only_what_float32_holds_exactly_crosses_in_the_row(to: int, crosses: bool) -> None:
    model = parsed(
        "(float[batch, 4] x, float[batch, 4] t) => (float[batch, 4] y) {"
        f"h = MatMul(t, w) s = Sin(h) c = Cast <to = {to}> (s) k = Identity(c) f = Cast <to = 1> (k) y = Mul(x, f) }}",
        w=(4, 4),
    )
    inputs = {"x": LOOP, "t": SCHEDULE}
    parts = partition(model, inputs, TRAFFIC_ONLY)
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE
    reasons = " ".join(item.reason for item in parts.report.declined)
    assert ("which a float32 row does not hold exactly" in reasons) is not crosses


def test_what_the_row_restores_has_its_dtype_and_shape() -> None:
    model = parsed(
        "(float[batch, 2, 3] x, float[batch, 2, 3] t) => (float[batch, 2, 3] y) <float zero = {0}> {"
        "v = MatMul(t, w) big = Greater(v, zero) n = Neg(x) b = Where(big, x, n) u = MatMul(t, w2) y = Mul(b, u) }",
        w=(3, 3), w2=(3, 3),
    )  # fmt: skip
    inputs = {"x": LOOP, "t": SCHEDULE}
    parts = partition(model, inputs, TRAFFIC_ONLY)
    assert {(slot.value, slot.tail, slot.dtype) for slot in parts.layout.slots} == {
        ("big", (2, 3), ir.DataType.BOOL), ("u", (2, 3), ir.DataType.FLOAT),
    }  # fmt: skip
    assert [slot.offset for slot in parts.layout.slots] == [0, 6]
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE


def test_the_prompt_is_computed_once_where_that_is_cheaper() -> None:
    text = (
        "(float[batch, 4] x, float[batch, 1] t, float[batch, 256] p) => (float[batch, 4] y) {"
        "c = MatMul(p, w_p) k = Sin(c) h = MatMul(t, w_t) s = Add(h, k) m = MatMul(s, w_m) y = Mul(x, m) }"
    )
    inputs = {"x": LOOP, "t": SCHEDULE, "p": PROMPT}
    model = parsed(text, w_p=(256, 4), w_t=(1, 4), w_m=(4, 4))
    parts = partition(model, inputs, TRAFFIC_ONLY)
    assert operators(parts.prompt) == ["MatMul", "Sin"]
    (tensor,) = parts.layout.prompt_tensors
    assert (tensor.value, tensor.read_by_loop, tensor.read_by_schedule) == ("k", False, True)
    assert {item.name: item.feed for item in parts.layout.schedule_inputs} == {"t": Feed.STACK, "prompt_0": Feed.TILE}
    assert largest_error(parts, inputs, {"batch": 3}) <= TOLERANCE


def test_the_cut_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    script = (
        "from tests.export.hoist.graphs import *\n"
        "parts = cut(adaln(), x=LOOP, t=SCHEDULE, p=PROMPT)\n"
        "print(parts.layout, [n.name for n in parts.denoise.graph], [n.name for n in parts.schedule.graph])\n"
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(root / "runtime")])
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1


def test_nodes_keep_the_note_of_the_module_that_they_come_from() -> None:
    """A family's float32 islands are found by it, after hoisting, too."""
    model, note = adaln(), "pkg.torch.onnx.name_scopes"
    for index, node in enumerate(model.graph):
        node.metadata_props[note] = f"['', 'layer.{index}']"
    parts = partition(model, {"x": LOOP, "t": SCHEDULE, "p": PROMPT}, CostModel(DIMS, part_bytes=0))
    graphs = [part.graph for part in (parts.prompt, parts.schedule, parts.denoise) if part is not None]
    assert len(graphs) > 1
    found = {node.metadata_props.get(note) for graph in graphs for node in graph}
    assert {node.metadata_props[note] for node in model.graph} <= found
