"""Classes by dependence, sizes, and every graph that is refused."""

import onnx_ir as ir
import pytest

from export.cost import model_with_static_shapes
from export.hoist import (
    CostModel,
    HoistError,
    InputClass,
    NotALoopError,
    UnknownInputError,
    UnsupportedNodeError,
    UnusedInputError,
    ValueClass,
    partition,
)
from export.hoist.classes import Classes, classify
from export.hoist.probing import probe_of
from tests.export.hoist.graphs import DIMS, LOOP, PROMPT, SCHEDULE, adaln, cut, parsed


def classes_of(model: ir.Model, **inputs: InputClass) -> tuple[Classes, dict[str, ValueClass]]:
    dims = {"batch": 2, "tokens": 3}
    found = classify(model, inputs, probe_of(model_with_static_shapes(model, dims), dims))
    return found, {value.name or "": c for value, c in found.of.items()}


def test_a_class_is_the_largest_of_what_a_node_reads() -> None:
    _, of = classes_of(adaln(), x=LOOP, t=SCHEDULE, p=PROMPT)
    expected = {"e": ValueClass.SCHEDULE, "c": ValueClass.PROMPT, "s": ValueClass.SCHEDULE, "n": ValueClass.LOOP}
    assert expected.items() <= of.items()


def test_timestep_only_excludes_the_prompt() -> None:
    classes, _ = classes_of(adaln(), x=LOOP, t=SCHEDULE, p=PROMPT)
    names = {value.name for value in classes.timestep_only}
    assert {"e", "h"} <= names
    assert not {"s", "c"} & names


def test_the_shape_of_the_latents_is_no_dependence_on_them() -> None:
    model = parsed(
        "(float[batch, 4] x, float[batch] t, float[tokens] q) => (float[batch, 4] y) <int64[1] one = {1}> {"
        "shape = Shape(x) e = Unsqueeze(t, one) wide = Expand(e, shape) z = Add(x, wide)"
        "r = ReduceSum(q) y = Add(z, r)}"
    )
    classes, of = classes_of(model, x=LOOP, t=SCHEDULE, q=PROMPT)
    assert of["shape"] is ValueClass.SCHEDULE  # only t has `batch` outside the loop
    assert of["wide"] is ValueClass.SCHEDULE
    assert "shape" in {value.name for value in classes.sizes}
    _, of = classes_of(model, x=LOOP, t=LOOP, q=PROMPT)
    assert of["shape"] is ValueClass.LOOP


def test_a_size_that_only_the_latents_have_is_theirs() -> None:
    model = parsed(
        "(float[batch, tokens] x, float[batch] t) => (float[batch, tokens] y) <int64[1] one = {1}> {"
        "shape = Shape(x) e = Unsqueeze(t, one) wide = Expand(e, shape) y = Add(x, wide)}"
    )
    _, of = classes_of(model, x=LOOP, t=SCHEDULE)
    assert of["wide"] is ValueClass.LOOP


def test_of_a_shape_only_what_is_asked_for_has_to_be_known() -> None:
    """x.shape[:1] is the batch, whatever the size of the latents, which no other input has."""
    model = parsed(
        "(float[batch, tokens] x, float[batch] t) => (float[batch, tokens] y) <int64[1] one = {1}> {"
        "rows = Shape<start = 0, end = 1>(x) e = Expand(t, rows) u = Unsqueeze(e, one) y = Add(x, u)}"
    )
    _, of = classes_of(model, x=LOOP, t=SCHEDULE)
    assert of["e"] is ValueClass.SCHEDULE
    behind = parsed(
        "(float[batch, tokens] x, float[batch] t) => (float[batch, tokens] y) <int64[1] one = {1}> {"
        "wide = Shape<start = 1>(x) u = Unsqueeze(t, one) e = Expand(u, wide) y = Add(x, e)}"
    )
    _, of = classes_of(behind, x=LOOP, t=SCHEDULE)
    assert of["e"] is ValueClass.LOOP


SMALL = "(float[batch, 4] x, float[batch, 4] p) => (float[batch, 4] y)"


@pytest.mark.parametrize(
    ("text", "inputs", "error", "message"),
    [
        (SMALL + "{y = Add(x, p)}", {"x": LOOP, "p": PROMPT, "q": PROMPT}, UnknownInputError,
         r"no input is called q; the graph has x, p"),
        (SMALL + "{y = Add(x, p)}", {"x": LOOP}, UnknownInputError,
         r"input p has no class; give prompt, schedule or loop"),
        (SMALL + "{y = Neg(x)}", {"x": LOOP, "p": PROMPT}, UnusedInputError, r"input 'p' is never used"),
        (SMALL + "{y = Add(x, p)}", {"x": SCHEDULE, "p": PROMPT}, NotALoopError,
         r"output 'y' does not depend on the latents \(its class is schedule\)"),
        ("(float[batch] x, bool c) => (float[batch] y) {y = If(c) <"
         "then_branch = a () => (float[batch] u) {u = Exp(x)}, else_branch = b () => (float[batch] v) {v = Neg(x)}>}",
         {"x": LOOP, "c": PROMPT}, UnsupportedNodeError,
         r"node 'If_0' \(If\) has a subgraph"),
        (SMALL + "{r = RandomNormalLike(p) y = Add(x, r)}", {"x": LOOP, "p": PROMPT}, UnsupportedNodeError,
         r"'RandomNormalLike_0' \(RandomNormalLike\) is random"),
        (SMALL + "<float r = {0.5}, bool on = {1}> {d = Dropout(p, r, on) y = Add(x, d)}", {"x": LOOP, "p": PROMPT},
         UnsupportedNodeError, r"\(Dropout\) may be training"),
    ],
)  # fmt: skip
def test_what_cannot_be_hoisted_is_refused_in_one_line(
    text: str, inputs: dict[str, InputClass], error: type[HoistError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        partition(parsed(text), inputs, CostModel(DIMS))
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_functions_are_refused() -> None:
    model = adaln()
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    model.functions[("local", "f", "")] = ir.Function("local", "f", graph=graph, attributes=[])
    with pytest.raises(UnsupportedNodeError, match="calls functions; inline them first"):
        cut(model, x=LOOP, t=SCHEDULE, p=PROMPT)
