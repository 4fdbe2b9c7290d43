"""Sources and bundles of the cases, each made once, when a test first asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.pipeline import ExportOptions, export_bundle
from tests.families.cases import BY_NAME, STEPS, STORED, Case


@dataclass(frozen=True)
class Exported:
    """A source on disk and its bundle."""

    case: Case
    source: Path
    bundle: Path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Case name -> source and bundle, with the tables of all solvers and sizes of the case."""
    made: dict[str, Exported] = {}

    def of(name: str) -> Exported:
        if name not in made:
            case = BY_NAME[name]
            home = tmp_path_factory.mktemp(name)
            source = case.make(home / "source", **STORED, **case.options)
            options = ExportOptions(
                source=str(source), output=home / "bundle", solvers=case.solvers, steps=(STEPS,), sizes=case.sizes,
                img2img=case.img2img,
            )  # fmt: skip
            export_bundle(options)
            made[name] = Exported(case, source, home / "bundle")
        return made[name]

    return of
