"""Five architectures: the parts compose to the whole, and what leaves is what should."""

from export.hoist import Partition
from tests.export.hoist.architectures import Traced
from tests.export.hoist.compose import largest_error

Architecture = tuple[str, Traced, Partition]


def test_parts_compose_to_the_whole(architecture: Architecture) -> None:
    _, traced, parts = architecture
    other_dims = {symbol: size + 1 for symbol, size in traced.dims.items()}  # not those it was cut for
    assert largest_error(parts, traced.inputs, other_dims) <= 1e-6
