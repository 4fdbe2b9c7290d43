"""Opset 18 written as 17: what differs is rewritten, or refused by name."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from latentc.errors import LatentcError

from export.passes.opset import LOWERED, ConvertOpset
from tests.export.passes.graphs import fires, holds_still, noise, parsed, run

_AXES = {"axes": np.array([1], np.int64)}


@pytest.mark.parametrize("operator", [name for name in LOWERED if name.startswith("Reduce")])
def test_axes_become_an_attribute(operator: str) -> None:
    text = f"18 (float[b, 3, 4] x) => (float[b, 1, 4] y) {{ y = {operator}(x, axes) }}"
    model = fires(parsed(text, _AXES), ConvertOpset(17), {"x": np.abs(noise(0, 2, 3, 4)) + 1}, atol=0)
    assert len(model.graph[0].inputs) == 1
    assert list(model.graph[0].attributes["axes"].as_ints()) == [1]
    assert model.opset_imports == {"": 17}


def test_an_even_split_loses_its_attribute() -> None:
    text = """18 (float[b, 6] x) => (float[b, 2] p, float[b, 2] q, float[b, 2] r) {
        p, q, r = Split<axis=-1, num_outputs=3>(x) }"""
    model = fires(parsed(text), ConvertOpset(17), {"x": noise(0, 2, 6)}, atol=0)
    assert "num_outputs" not in model.graph[0].attributes


def test_an_uneven_split_gets_its_sizes() -> None:
    text = """18 (float[b, 7] x) => (float[b, 3] p, float[b, 3] q, float[b, 1] r) {
        p, q, r = Split<axis=1, num_outputs=3>(x) }"""
    model = fires(parsed(text), ConvertOpset(17), {"x": noise(0, 2, 7)}, atol=0)
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [3, 3, 1]


def test_a_resize_with_default_attributes() -> None:
    text = """18 (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) {
        y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor", antialias=0,
                   keep_aspect_ratio_policy="stretch">(x, , scales) }"""
    model = parsed(text, {"scales": np.array([1, 1, 2, 2], np.float32)})
    fires(model, ConvertOpset(17), {"x": noise(0, 1, 1, 2, 2)}, atol=0)


@pytest.mark.parametrize(
    ("text", "constants", "reason"),
    [
        ("18 (float[n] x) => (float[p] p, float[q] q) { p, q = Split<num_outputs=2>(x) }", {}, "equal parts"),
        ("18 (float[b, 3] x, int64[1] a) => (float[c, d] y) { y = ReduceMean(x, a) }", {}, "its axes are computed"),
        ("18 (float[b, 3] x) => (float[b, 3] y) { y = ReduceMax<noop_with_empty_axes=1>(x) }", {}, "identity"),
        (
            "18 (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) { y = Resize<antialias=1, mode=\"linear\">(x, , s) }",
            {"s": np.array([1, 1, 0.5, 0.5], np.float32)},
            "antialias",
        ),
        (
            "18 (float[2, 2] x) => (float[2, 4] y) { y = Pad(x, p, , axes) }",
            {"p": np.array([1, 1], np.int64), **_AXES},
            "axes are given",
        ),
        ("18 (int32[2] x) => (int32[2] y) { y = BitwiseNot(x) }", {}, "not in opset 17"),
    ],
)  # fmt: skip
def test_refuses_by_name_and_reason(text: str, constants: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(LatentcError, match=reason) as error:
        ConvertOpset(17)(parsed(text, constants))
    assert "_0'" in str(error.value), "the node's name"


def test_holds_still_in_its_own_opset_and_raises_a_lower_one() -> None:
    text = "17 (float[b, 3] x) => (float[b, 1] y) { y = ReduceMean<axes=[1]>(x) }"
    holds_still(parsed(text), ConvertOpset(17))
    model = parsed("17 (float[b, 3] x) => (float[b, 3] y) { y = Relu(x) }")
    assert ConvertOpset(18)(model).modified
    assert model.opset_imports == {"": 18}


def test_every_operator_that_differs_from_17_to_18_has_a_row() -> None:
    """What has another interface in 18 and no row is refused; this is the list of what is refused, and no more."""
    versions: dict[str, dict[int, onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, {})[schema.since_version] = schema
    changed = {name for name, known in versions.items() if 18 in known and min(known) < 18}
    assert changed - set(LOWERED) == {"LpPool", "OptionalGetElement", "OptionalHasElement"}


def test_negative_control_axes_that_are_dropped_are_seen() -> None:
    """What TensorRT 8.6 does with an axes input: the mean over all dims."""
    model = parsed("18 (float[2, 3] x) => (float[c, d] y) { y = ReduceMean(x, axes) }", _AXES)
    want = run(model, {"x": noise(0, 2, 3)})[0]
    ConvertOpset(17)(model)
    del model.graph[0].attributes["axes"]
    model.graph.outputs[0].shape = ir.Shape(["c", "d"])
    assert run(model, {"x": noise(0, 2, 3)})[0].shape != want.shape
