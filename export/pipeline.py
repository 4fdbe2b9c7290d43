"""The compiler from top to bottom: each phase takes what the phase before it returned."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from latentc.bundle import MANIFEST, GraphBytes
from latentc.heap import give_back_large_blocks
from latentc.schema import Manifest, Precision

from export.calibrate import Samples, calibration_inputs
from export.compile import (
    HoistedStep,
    NarrowedStep,
    check_graphs,
    clean_graphs,
    fuse,
    hoist,
    narrow,
    with_cached_step,
)
from export.dump import dump_clean, dump_final
from export.eight_bit import quantise
from export.examples import parity_size
from export.graph_files import file_records, weight_places, write_graphs
from export.loop import Loop, parity_loop
from export.manifest import default_table, draft_manifest
from export.parity_inputs import Drawn, drawn_inputs
from export.parity_request import parity_table
from export.preflight import SMALL_FILES_BYTES, estimated_bundle_bytes, memory_need, require_disk, require_memory
from export.proof import hoisted_values
from export.reach import DEFAULT_MEMORY_BYTES, Reach, reach_of
from export.remembered import (
    Nested,
    remembered_arrays,
    remembered_choice,
    remembered_measure,
    remembered_tables,
    remembered_verification,
)
from export.segments import SEGMENT_BYTES
from export.solver_probe import Schedule
from export.solver_table import SolverTable, table_from_solver
from export.solvers import own_solver, solver_from_name
from export.source import hashed_source, source_directory
from export.source_sizes import source_sizes
from export.stage import Stage, open_stage, stage_bytes
from export.step import FusedStep, fuse_step
from export.step_cache.calibrate import calibrated
from export.step_cache.split import LEAST_BLOCKS
from export.targets import Target
from export.trace import trace_step
from export.verify import BOUNDS, Bounds, Checked, Verified, checking_engines, verify_graphs
from export.work_key import work_key
from export.write import seal, write_tables, write_tokenizers
from models.latent_diffusion import LatentDiffusion, Lora, SourceError

T = TypeVar("T")
MAX_REPORTED = 10
USUAL_STEPS = (4, 20, 50)
PROGRAM_BYTES = 1_500_000_000  # libraries, and the graphs of the largest model that was tried (FLUX.1: 1.3 GB)


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
    memory_bytes: int = DEFAULT_MEMORY_BYTES  # how far checks go (export/reach.py)
    cache: bool = False  # with a graph for cached steps, and lists of calls that may run it

    def as_key(self) -> str:
        """All that the bundle depends on, as text."""
        return repr(replace(self, source="", output=Path(), dump=None, loras=()))


def export_bundle(options: ExportOptions) -> Manifest:
    """SOURCE -> BUNDLE. Raises SourceError, or ParityError when a bound does not hold; then nothing is written.

    What is killed can be continued: the stage beside BUNDLE keeps weights that were written and results of long phases.
    """
    check_output(options.output)
    check_precision(options)
    give_back_large_blocks()
    # Phase 1: what the user has, as torch modules without weights; and the solvers as tables.
    location = source_directory(options.source)
    require_room(location, options)
    source = timed("hash", lambda: hashed_source(location, options.loras))
    model = timed("load", lambda: fitted(source.family.load(source.directory, source.loras), options))
    tables = timed("probe", lambda: probe_tables(model, options))
    with open_stage(options.output, work_key(source.sha256, options.as_key())) as stage:
        # Phase 2: one step of the loop, and the decoder, as clean graphs; and what they are compared on.
        step = fuse_step(model)
        reach = reach_of(step, options.memory_bytes, options.img2img)
        if options.cache:
            require_trajectory(reach)
        first = float(parity_table(step, tables).timesteps[0])
        drawn = timed("draw", lambda: drawn_inputs(step, reach, first, encode=options.img2img))
        phase_inputs = drawn.for_phases()
        clean = traced_and_cleaned(step, phase_inputs, reach, options)
        # Phase 3: what does not change leaves the loop; half precision; the target's parser.
        hoisted = clean
        if options.hoist:
            calls, balance = default_table(model, tables).calls, options.flops_per_byte
            hoisted = timed("hoist", lambda: hoist(clean, calls, phase_inputs["denoise"], balance, reach))
        given = timed("hand over", lambda: remembered_arrays(stage, "handed-over", lambda: handed(hoisted, drawn)))
        checked = Checked(reach, drawn, given)
        bounds = options.bounds or BOUNDS[options.precision]
        loop, samples = timed("calibrate", lambda: calibration(hoisted, tables, options.precision, checked))
        if options.precision == "int8":
            recall = partial(remembered_choice, stage)
            narrowed = timed("quantise", lambda: quantise(hoisted, samples, loop, checked, bounds, recall))
        else:
            measure = partial(remembered_measure, stage)
            narrowed = timed("narrow", lambda: narrow(hoisted, options.precision, samples, measure))
        report_narrowed(narrowed)
        narrowed = fuse(narrowed, options.target, options.precision)
        if options.cache:
            narrowed = with_cached_step(narrowed)
        check_graphs(narrowed, options.target)
        if options.dump is not None:
            dump_final(options.dump, narrowed)
        # Phase 4: written weight by weight, verified as written, sealed, and put in place whole.
        require_disk(options.output, bundle_bytes(narrowed), stage.kept_bytes())
        graphs = timed(
            "weights", lambda: write_graphs(stage.directory, narrowed.graphs, stage.work, narrowed.shared_weights)
        )
        records = write_tables(stage.directory, tables)
        tokenizers = write_tokenizers(stage.directory, model)
        draft = draft_manifest(source, narrowed, tables, records, options.precision, options.target)
        directory = stage.directory / "graphs"
        if options.cache:
            draft = timed("cache", lambda: with_schedules(stage, narrowed, draft, graphs, tables, tokenizers))

        def verify() -> Verified:
            return verify_graphs(source, narrowed, checked, draft, graphs, directory, tables, tokenizers, bounds)

        verified = timed("verify", lambda: remembered_verification(stage, verify))
        report_unverified(verified)
        manifest = seal(stage.directory, draft, verified.parity, verified.references, file_records(graphs))
        timed("write", stage.commit)
        return manifest


def traced_and_cleaned(
    step: FusedStep, inputs: Mapping[str, Mapping[str, np.ndarray]], reach: Reach, options: ExportOptions
) -> HoistedStep:
    """The clean graphs; the traced ones go with this call."""
    traced = timed("trace", lambda: trace_step(step, encode=options.img2img))
    clean = timed("clean", lambda: clean_graphs(traced, options.target, inputs, reach))
    if options.dump is not None:
        dump_clean(options.dump, traced, clean)
    return clean


def require_room(source: Path, options: ExportOptions) -> None:
    """Refuses, before any work, what the disk or the memory has no room for."""
    sizes = source_sizes(source, img2img=options.img2img)
    require_disk(options.output, estimated_bundle_bytes(sizes, options.precision), stage_bytes(options.output))
    require_memory(memory_need(sizes.largest_parameter, PROGRAM_BYTES, 2 * SEGMENT_BYTES))


def handed(hoisted: HoistedStep, drawn: Drawn) -> Nested:
    """What prompt and schedule graph must return for the drawn inputs: of the graph that nothing has left yet."""
    return hoisted_values(hoisted.whole, hoisted.parts, drawn.inputs["denoise"])


def bundle_bytes(narrowed: NarrowedStep) -> int:
    """The exact size of the weights that will be written, and some room for small files."""
    own = (graph for name, graph in narrowed.graphs.items() if name not in narrowed.shared_weights)
    places = (weight_places(graph) for graph in own)
    return sum(of_graph[-1].end for of_graph in places if of_graph) + SMALL_FILES_BYTES


def fitted(model: LatentDiffusion, options: ExportOptions) -> LatentDiffusion:
    """The model with the default size that was asked for; SourceError for what its family cannot do."""
    if options.img2img and model.encoder is None:
        raise SourceError(f"--img2img: drawing over an image is not supported for {model.pipeline}; leave it away")
    if options.cache and model.num_blocks < LEAST_BLOCKS:
        why = f"its denoiser has {model.num_blocks} blocks" if model.blocks else "it has no one stream of blocks to cut"
        raise SourceError(
            f"--cache: steps of {model.pipeline} cannot be cached: {why}; transformers of {LEAST_BLOCKS} blocks and "
            "more can (DiT, FLUX, PixArt, SANA, SD3); leave --cache away"
        )
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


def require_trajectory(reach: Reach) -> None:
    """Refuses a step cache where no picture is drawn: a level is a quality, and that is measured."""
    if not reach.runs_trajectory:
        reason = next(item.reason for item in reach.unverified() if item.tensor == "trajectory")
        raise SourceError(f"--cache draws whole pictures, and {reason}; give a larger --memory, or leave --cache away")


def with_schedules(
    stage: Stage,
    narrowed: NarrowedStep,
    draft: Manifest,
    graphs: Mapping[str, GraphBytes],
    tables: tuple[SolverTable, ...],
    tokenizers: Mapping[str, memoryview],
) -> Manifest:
    """The manifest with the cached calls of each table."""
    engines = checking_engines(graphs, stage.directory / "graphs")
    found = remembered_tables(stage, lambda: calibrated(narrowed, draft, tables, tokenizers, engines))
    engines.close()
    return msgspec.structs.replace(draft, tables=found)


def calibration(
    hoisted: HoistedStep,
    tables: tuple[SolverTable, ...],
    precision: Precision,
    checked: Checked,
) -> tuple[Loop | None, Samples]:
    """The trajectory, where it is within reach, and what half precision or int8 is measured on; nothing for float32."""
    if precision == "fp32":
        return None, {}
    loop = parity_loop(hoisted, parity_table(hoisted.step, tables)) if checked.reach.runs_trajectory else None
    return loop, calibration_inputs(hoisted, loop, checked.drawn, checked.handed_over)


def report_narrowed(narrowed: NarrowedStep) -> None:
    """Names on stderr the weights that half precision holds badly, or the layers that int8 does not hold; --dump lists
    them all, and every island.
    """
    for pattern in narrowed.void_islands:
        print(f"export: note: the island {pattern!r} of this family holds no node; is it renamed?", file=sys.stderr)
    lines = [f"{graph}: {fit}" for graph, report in narrowed.half.items() for fit in report.weights]
    if narrowed.int8 is not None:
        int8 = narrowed.int8
        print(f"export: note: {int8.num_int8} of {len(int8.local)} layers of the loop are int8", file=sys.stderr)
        kept = int8.kept
        if int8.decoder is not None:
            convolutions = f"{int8.decoder.num_int8} of {len(int8.decoder.errors)} convolutions of the decoder"
            print(f"export: note: {convolutions} are int8", file=sys.stderr)
            kept += int8.decoder.kept
        lines += [f"{layer.name} stays in fp32: {layer.reason}" for layer in kept]
    more = [f"and {len(lines) - MAX_REPORTED} more; --dump DIR lists them"] if len(lines) > MAX_REPORTED else []
    for line in lines[:MAX_REPORTED] + more:
        print(f"export: note: {line}", file=sys.stderr)


def report_unverified(verified: Verified) -> None:
    """Says on stderr what parity.json says was not compared."""
    for item in verified.parity.unverified:
        print(f"export: note: {item.tensor} was not compared: {item.reason}", file=sys.stderr)


def check_precision(options: ExportOptions) -> None:
    """Refuses int8 for a target that has no such graphs."""
    if options.precision == "int8" and options.target != "onnxruntime":
        raise SourceError(
            f"--precision int8 for --target {options.target}: int8 is written for onnxruntime only (TensorRT wants "
            "QuantizeLinear and DequantizeLinear, which is not built); give --precision fp16, or --target onnxruntime"
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
    print(f"{phase:<10}{time.perf_counter() - start:6.1f} s", file=sys.stderr)
    return result
