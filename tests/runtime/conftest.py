"""The toy bundle, made once; tests that change it get a copy."""

import shutil
from pathlib import Path

import pytest

from tests.runtime import toy, toy_variants


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle that no test may change."""
    return toy.write_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the toy bundle that the test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "toy"))


@pytest.fixture(scope="session")
def over_image(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle that also draws over an image; no test may change it."""
    root = tmp_path_factory.mktemp("img2img") / "toy"
    return toy_variants.add_img2img(Path(shutil.copytree(pristine, root)))
