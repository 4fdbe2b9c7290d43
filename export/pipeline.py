"""The compiler from top to bottom: each phase takes what the phase before it returned."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from latentc.bundle import MANIFEST
from latentc.schema import Manifest, Precision

from export.calibrate import calibration_inputs
from export.compile import HoistedStep, NarrowedStep, check_graphs, clean_graphs, hoist, narrow
from export.dump import dump_phases
from export.examples import parity_size
from export.manifest import default_table, draft_manifest
from export.parity_inputs import phase_inputs
from export.parity_request import parity_table
from export.solver_probe import Schedule
from export.solver_table import SolverTable, table_from_solver
from export.solvers import own_solver, solver_from_name
from export.source import find_source
from export.stage import staged_directory
from export.step import fuse_step
from export.targets import Target
from export.trace import trace_step
from export.verify import BOUNDS, Bounds, verify_graphs
from export.write import seal, write_graphs, write_tables, write_tokenizers
from models.latent_diffusion import LatentDiffusion, Lora, SourceError

T = TypeVar("T")
MAX_REPORTED = 10
USUAL_STEPS = (4, 20, 50)


@dataclass(frozen=True)
class ExportOptions:
    """What the user asked for; see `python -m export --help`."""

    source: str
    output: Path
    solvers: tuple[str, ...] = ()  # none: the source's own
    steps: tuple[int, ...] = ()  # none: USUAL_STEPS and the pipeline's own
    sizes: tuple[tuple[int, int], ...] = ()  # width, height in pixels; the first is the default; none: the source's
    img2img: bool = False
    loras: tuple[Lora, ...] = ()
    precision: Precision = "fp32"
    target: Target = "onnxruntime"
    hoist: bool = True
    flops_per_byte: float = 200.0
    dump: Path | None = None
    bounds: Bounds | None = None  # None: those of the precision


def export_bundle(options: ExportOptions) -> Manifest:
    """SOURCE -> BUNDLE. Raises SourceError, or ParityError when a bound does not hold; then nothing is written."""
    check_output(options.output)
    # Phase 1: what the user has, as torch modules; and the solvers as tables.
    source = find_source(options.source, options.loras)
    model = timed("load", lambda: fitted(source.family.load(source.directory, source.loras), options))
    tables = timed("probe", lambda: probe_tables(model, options))
    # Phase 2: one step of the loop, and the decoder, as graphs.
    step = fuse_step(model)
    traced = timed("trace", lambda: trace_step(step, encode=options.img2img))
    inputs = phase_inputs(step, encode=options.img2img)
    # Phase 3: clean for the target; what does not change leaves the loop; half precision; the target's parser.
    clean = timed("clean", lambda: clean_graphs(traced, options.target, inputs))
    hoisted = clean
    if options.hoist:
        calls = default_table(model, tables).calls
        hoisted = timed("hoist", lambda: hoist(clean, calls, inputs["denoise"], options.flops_per_byte))
    samples = timed("calibrate", lambda: calibration(hoisted, tables, options.precision))
    narrowed = timed("narrow", lambda: narrow(hoisted, options.precision, samples))
    report_weights(narrowed)
    check_graphs(narrowed, options.target)
    if options.dump is not None:
        dump_phases(options.dump, traced, clean, narrowed)
    # Phase 4: written beside its place, verified as written, sealed, and put in place whole.
    with staged_directory(options.output) as stage:
        graphs = write_graphs(stage, narrowed.graphs)
        records = write_tables(stage, tables)
        tokenizers = write_tokenizers(stage, model)
        draft = draft_manifest(source, narrowed, tables, records, options.precision, options.target)
        bounds = options.bounds or BOUNDS[options.precision]
        verified = timed("verify", lambda: verify_graphs(source, narrowed, draft, graphs, tables, tokenizers, bounds))
        return timed("write", lambda: seal(stage, draft, verified.parity, verified.references))


def fitted(model: LatentDiffusion, options: ExportOptions) -> LatentDiffusion:
    """The model with the default size that was asked for; SourceError for what its family cannot do."""
    if options.img2img and model.encoder is None:
        raise SourceError(f"--img2img: drawing over an image is not supported for {model.pipeline}; leave it away")
    channels, height, width = model.latent_shape
    factor = model.image_shape[1] // height
    for given in options.sizes:
        text, own = f"{given[0]}x{given[1]}", f"{factor * width}x{factor * height}"
        if model.sizes is None:
            if text != own:
                raise SourceError(f"--size {text}: a {model.pipeline} checkpoint has one size; this one draws {own}")
            continue
        unit, most = factor * model.sizes.multiple, factor * model.sizes.maximum
        least = factor * model.sizes.minimum
        if any(value % unit or not least <= value <= most for value in given):
            raise SourceError(f"--size {text}: give multiples of {unit} from {least} to {most}, such as {own}")
    if not options.sizes:
        return model
    width, height = options.sizes[0]
    return replace(
        model,
        latent_shape=(channels, height // factor, width // factor),
        image_shape=(model.image_shape[0], height, width),
    )


def probe_tables(model: LatentDiffusion, options: ExportOptions) -> tuple[SolverTable, ...]:
    """One table for each solver and step count (and size, where it matters), the default solver and size first."""
    solvers = [solver_from_name(name, model.scheduler) for name in dict.fromkeys(options.solvers)]
    _, *default = model.latent_shape
    factor = model.image_shape[1] // default[0]
    sizes = [(default[0], default[1])]
    if model.timesteps_depend_on_size:
        sizes += [(height // factor, width // factor) for width, height in options.sizes]
        sizes.append(parity_size(model))  # what the parity report speaks of can be drawn, too
    return tuple(
        table_from_solver(
            solver,
            steps,
            Schedule(model.set_timesteps, size, size if model.timesteps_depend_on_size else None, factor),
            img2img=options.img2img,
        )
        for solver in solvers or [own_solver(model.scheduler)]
        for steps in dict.fromkeys(options.steps or sorted({*USUAL_STEPS, model.default_steps}))
        for size in dict.fromkeys(sizes)
    )


def calibration(
    hoisted: HoistedStep, tables: tuple[SolverTable, ...], precision: Precision
) -> Mapping[str, Sequence[Mapping[str, np.ndarray]]]:
    """What half precision is calibrated on; nothing for float32."""
    return calibration_inputs(hoisted, parity_table(hoisted.step, tables)) if precision == "fp16" else {}


def report_weights(narrowed: NarrowedStep) -> None:
    """Names on stderr the weights that half precision holds badly; --dump lists them all, and every island."""
    for pattern in narrowed.void_islands:
        print(f"export: note: the island {pattern!r} of this family holds no node; is it renamed?", file=sys.stderr)
    lines = [f"{graph}: {fit}" for graph, report in narrowed.half.items() for fit in report.weights]
    more = [f"and {len(lines) - MAX_REPORTED} more; --dump DIR lists them"] if len(lines) > MAX_REPORTED else []
    for line in lines[:MAX_REPORTED] + more:
        print(f"export: note: {line}", file=sys.stderr)


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
    print(f"{phase:<10}{time.perf_counter() - start:6.1f} s", file=sys.stderr)
    return result
