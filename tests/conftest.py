"""Fixtures that more than one room of the tests needs: a source with random weights, and its bundle."""

import os
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With --dist loadgroup one worker runs a file, so that what its tests share is exported once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def python_path(repository: Path) -> dict[str, str]:
    """The environment of a subprocess that imports from the checkout."""
    return {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'runtime'}"}


@pytest.fixture(scope="session")
def random_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline directory with random weights (ε-prediction, learned variance)."""
    from tests.sources import write_random_dit

    return write_random_dit(tmp_path_factory.mktemp("sources") / "random-dit")


# The solvers of issue-level promises: those that the README's table names.
SOLVERS = ("ddim", "ddpm", "dpmpp_2m", "unipc", "euler", "heun")


@pytest.fixture(scope="session")
def random_dit_bundle(random_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `random_dit` with 4 and 10 steps of six solvers."""
    from export.pipeline import ExportOptions, export_bundle

    output = tmp_path_factory.mktemp("bundles") / "random-dit"
    export_bundle(ExportOptions(source=str(random_dit), output=output, solvers=SOLVERS, steps=(4, 10)))
    return output
