"""Every architecture is traced and cut once a session."""

from collections.abc import Callable

import pytest

from export.hoist import CostModel, Partition, partition
from tests.export.hoist import architectures
from tests.export.hoist.architectures import Traced

ARCHITECTURES: dict[str, Callable[[], Traced]] = {
    "dit_step": architectures.dit_step,
    "flux": architectures.flux,
    "sd3": architectures.sd3,
    "pixart": architectures.pixart,
    "unet": architectures.unet,
}


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[str, Traced, Partition]:
    """The name of an architecture, its traced graph, and its partition."""
    traced = ARCHITECTURES[request.param]()
    return request.param, traced, partition(traced.model, traced.inputs, CostModel(traced.dims))
