"""Symbolic dims: bound by inputs, evaluated for outputs."""

import pytest
from latentc.dims import bound_dims, evaluated
from latentc.errors import BundleError
from latentc.schema import TensorSpec

SPECS = (
    TensorSpec(name="a", dtype="float32", shape=("guidance_branches", "batch", 4)),
    TensorSpec(name="b", dtype="int64", shape=("batch",)),
)


def test_names_and_products() -> None:
    sizes = bound_dims(SPECS, {"a": (2, 3, 4), "b": (3,)})
    assert sizes == {"guidance_branches": 2, "batch": 3}
    assert [evaluated(dim, sizes) for dim in (7, "batch", "batch*guidance_branches", "4*batch", "4*batch + 77")] == [
        7, 3, 6, 12, 89,
    ]  # fmt: skip


def test_multiples_of_one_name_bind_it() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", "8*grid_height", "grid_width*2"))
    assert bound_dims([spec], {"x": (3, 64, 10)}) == {"batch": 3, "grid_height": 8, "grid_width": 5}
    with pytest.raises(BundleError, match=r"input x: 8\*grid_height cannot be 60"):
        bound_dims([spec], {"x": (3, 60, 10)})


@pytest.mark.parametrize("shapes", [{"a": (2, 3, 4), "b": (5,)}, {"a": (2, 3), "b": (3,)}])
def test_inputs_that_contradict_each_other_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(BundleError):
        bound_dims(SPECS, shapes)


@pytest.mark.parametrize("dim", ["tokens", "batch*tokens", "batch-1", "batch+tokens", "__import__('os')"])
def test_a_dim_that_nothing_binds_is_named(dim: str) -> None:
    with pytest.raises(BundleError, match="is not known"):
        evaluated(dim, {"batch": 3})
