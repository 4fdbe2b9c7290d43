"""The compiler from top to bottom: each phase takes what the phase before it returned."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from latentc.bundle import MANIFEST
from latentc.schema import Manifest

from export.solver_table import SolverTable, table_from_solver
from export.solvers import own_solver, solver_from_name
from export.source import find_source
from export.stage import staged_directory
from export.step import fuse_step
from export.trace import trace_step
from export.verify import Bounds, verify_graphs
from export.write import seal, write_graphs, write_tables
from models.latent_diffusion import LatentDiffusion, SourceError

T = TypeVar("T")


@dataclass(frozen=True)
class ExportOptions:
    """What the user asked for; see `python -m export --help`."""

    source: str
    output: Path
    solvers: tuple[str, ...] = ()  # none: the source's own
    steps: tuple[int, ...] = (4, 20, 50)
    bounds: Bounds = field(default_factory=Bounds)


def export_bundle(options: ExportOptions) -> Manifest:
    """SOURCE -> BUNDLE. Raises SourceError, or ParityError when a bound does not hold; then nothing is written."""
    check_output(options.output)
    source = find_source(options.source)
    model = timed("load", lambda: source.family.load(source.directory))
    tables = timed("probe", lambda: probe_tables(model, options))
    step = fuse_step(model)
    traced = timed("trace", lambda: trace_step(step))
    with staged_directory(options.output) as stage:
        graphs = write_graphs(stage, traced)
        records = write_tables(stage, tables)
        verified = timed("verify", lambda: verify_graphs(source, step, graphs, tables, options.bounds))
        return timed(
            "write", lambda: seal(stage, source, traced, tables, records, verified.parity, verified.references)
        )


def probe_tables(model: LatentDiffusion, options: ExportOptions) -> tuple[SolverTable, ...]:
    """One table for each solver and step count, the default solver first."""
    solvers = [solver_from_name(name, model.scheduler) for name in dict.fromkeys(options.solvers)]
    return tuple(
        table_from_solver(solver, steps)
        for solver in solvers or [own_solver(model.scheduler)]
        for steps in dict.fromkeys(options.steps)
    )


def check_output(output: Path) -> None:
    """Refuses to replace anything but an older bundle."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise SourceError(f"{output}: exists and is no directory; give --output a new path or an older bundle")
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise SourceError(f"{output}: exists and is no bundle; give --output a new path or an older bundle")


def timed(phase: str, work: Callable[[], T]) -> T:
    """Runs one phase, and says on stderr how long it took."""
    start = time.perf_counter()
    result = work()
    print(f"{phase:<8}{time.perf_counter() - start:6.1f} s", file=sys.stderr)
    return result
