"""latentc inspect: what a bundle holds, and what each of its stages costs in work and in memory."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.bundle import Bundle, open_bundle
from latentc.memory import MEMORY, Memory, Prediction, TileMemory, predicted, tile_memory
from latentc.schema import (
    Defaults,
    Graph,
    Hoisting,
    Image,
    Img2Img,
    LabelConditioning,
    Latent,
    Provenance,
    SizeRange,
    Solver,
    Table,
    TensorSpec,
    TextConditioning,
)


@dataclass(frozen=True)
class Options:
    """The flags of the command, as in arguments.py."""

    bundle: Path
    json: bool


class Report(msgspec.Struct, frozen=True):
    """What --json prints: the manifest without its file list, and the sums."""

    name: str
    family: str
    pipeline: str
    precision: str
    target: str
    schema_version: int
    model_hash: str
    num_bytes: int
    latent: Latent
    image: Image
    sizes: SizeRange | None
    img2img: Img2Img | None
    conditioning: LabelConditioning | TextConditioning
    defaults: Defaults
    solvers: dict[str, Solver]
    tables: tuple[Table, ...]
    graphs: dict[str, Graph]
    hoisting: Hoisting
    memory: dict[Memory, Prediction]
    tile: TileMemory | None  # None: the decoder takes one size, or is too small to be run on tiles
    engines: list[str]
    provenance: Provenance


def run(options: Options) -> None:
    """Opens the bundle (and hashes it: what is shown is what was exported) and prints it."""
    bundle = open_bundle(options.bundle)
    report = _report(bundle)
    print(msgspec.json.encode(report).decode() if options.json else "\n".join(_lines(report)))


def _report(bundle: Bundle) -> Report:
    manifest = bundle.manifest
    engines = bundle.root / "engines"
    return Report(
        name=manifest.name,
        family=manifest.family,
        pipeline=manifest.pipeline,
        precision=manifest.precision,
        target=manifest.target,
        schema_version=manifest.schema_version,
        model_hash=bundle.model_hash,
        num_bytes=sum(record.num_bytes for record in manifest.files.values()),
        latent=manifest.latent,
        image=manifest.image,
        sizes=manifest.sizes,
        img2img=manifest.img2img,
        conditioning=manifest.conditioning,
        defaults=manifest.defaults,
        solvers=manifest.solvers,
        tables=manifest.tables,
        graphs=manifest.graphs,
        hoisting=manifest.hoisting,
        memory={memory: predicted(manifest, memory) for memory in MEMORY},
        tile=tile_memory(manifest),
        engines=sorted(path.parent.name for path in engines.glob("*/engine.json") if path.parent.name[0] != "."),
        provenance=manifest.provenance,
    )


def _lines(report: Report) -> list[str]:
    image, latent, defaults = report.image, report.latent, report.defaults
    facts = [
        ("name", f"{report.name} ({report.pipeline}, family {report.family}, {report.precision} for {report.target})"),
        ("model hash", f"{report.model_hash}, schema {report.schema_version}, {_bytes(report.num_bytes)}"),
        ("source", report.provenance.source),
        (
            "image",
            f"{image.width}x{image.height}, latents {latent.channels}x{latent.height}x{latent.width}; "
            f"{_sizes(report.sizes)}",
        ),
        ("defaults", f"{defaults.solver}, {defaults.steps} steps, {_scales(defaults)}"),
        ("engines", ", ".join(report.engines) or "none; latentc build makes them"),
    ]
    lines = [f"{name:<12}{value}" for name, value in facts]
    if report.img2img is not None:
        lines.append(f"{'img2img':<12}strength {report.img2img.strength:g}")
    if isinstance(report.conditioning, LabelConditioning):
        lines += textwrap.wrap(
            _labels(report.conditioning.labels),
            108,
            break_on_hyphens=False,
            initial_indent=f"{'labels':<12}",
            subsequent_indent=" " * 12,
        )
    else:
        lines.append(f"{'text':<12}{_encoders(report.conditioning)}")
    lines += ["", *_columns(["solver", "scheduler", "steps (calls, noise draws where they differ)"], _solvers(report))]
    rows = [
        [name, f"once a {g.runs_once_per}", f"{g.nodes}", _count(g.parameters), _weights(g), _count(g.flops)]
        for name, g in report.graphs.items()
    ]
    lines += ["", *_columns(["graph", "runs", "nodes", "parameters", "weights", "FLOPs a run"], rows)]
    lines += ["", *_loop(report), "", *_memory(report)]
    rows = [
        [f"{name} {side}", spec.name, spec.dtype, _shape(spec)]
        for name, graph in report.graphs.items()
        for side, specs in (("in", graph.inputs), ("out", graph.outputs))
        for spec in specs
    ]
    return [*lines, "", *_columns(["tensor of", "name", "dtype", "shape"], rows)]


def _weights(graph: Graph) -> str:
    """All bytes, and how many of them are int8."""
    int8 = f" ({_bytes(graph.int8_bytes)} int8)" if graph.int8_bytes else ""
    return f"{_bytes(graph.weight_bytes)}{int8}"


def _loop(report: Report) -> list[str]:
    """What the loop holds, with and without hoisting."""
    hoisting, loop = report.hoisting, report.graphs["denoise"]
    if loop.parameters == hoisting.whole_parameters and not hoisting.row_width:
        return ["the loop holds all of the step: nothing was hoisted"]
    share = 1 - loop.parameters / hoisting.whole_parameters
    saved = f"the loop holds {_count(loop.parameters)} of the step's {_count(hoisting.whole_parameters)} parameters"
    row = f"; each step reads one row of {_bytes(4 * hoisting.row_width)}" if hoisting.row_width else ""
    each = " for each image and guidance branch" if hoisting.row_width and hoisting.rows_per_step == "batch" else ""
    return [f"{saved} (-{100 * share:.1f} %){row}{each}"]


def _memory(report: Report) -> list[str]:
    """What each stage of a request holds, and the most that a request will."""
    rows = []
    for name in report.memory["normal"].stages:
        stages = [report.memory[memory].stages[name] for memory in MEMORY]
        rows.append([name, *(_bytes(n) for s in stages for n in (s.weights_bytes, s.activations_bytes, s.total_bytes))])
    head = [f"{memory}: {what}" for memory in MEMORY for what in ("weights", "activations", "in all")]
    peaks = [f"{memory} {_bytes(p.peak_bytes)} ({p.peak_while})" for memory, p in report.memory.items()]
    lines = [*_columns(["memory of", *head], rows), f"peak of a picture on the CPU: {', '.join(peaks)}"]
    if (tile := report.tile) is not None:
        both = f"{_bytes(tile.activations_bytes)} of activations, whole {_bytes(tile.whole_bytes)}"
        lines.append(f"the decoder by tiles, with --tile {tile.pixels}: {both}")
    return lines


def _sizes(sizes: SizeRange | None) -> str:
    if sizes is None:
        return "no other size"
    return f"any multiple of {sizes.multiple} from {sizes.minimum} to {sizes.maximum}"


def _scales(defaults: Defaults) -> str:
    guidance = "" if defaults.guidance is None else f", guidance {defaults.guidance:g}"
    return f"cfg scale {defaults.cfg_scale:g}{guidance}"


def _encoders(conditioning: TextConditioning) -> str:
    encoders = [f"{encoder.graph} ({encoder.prompt.length} tokens)" for encoder in conditioning.encoders]
    null = "; without a negative prompt the unconditional branch is zeros" if conditioning.zero_null else ""
    return ", ".join(encoders) + null


def _solvers(report: Report) -> list[list[str]]:
    rows = []
    for name, solver in report.solvers.items():
        counts = []
        for table in sorted((t for t in report.tables if t.solver == name), key=lambda t: (t.steps, t.size or ())):
            extra = [f"{table.size[0]}x{table.size[1]}"] if table.size else []
            extra += [f"{table.calls} calls"] if table.calls != table.steps else []
            extra += [f"{table.noise_draws} draws"] if table.noise_draws else []
            counts.append(f"{table.steps} ({', '.join(extra)})" if extra else f"{table.steps}")
        rows.append([name, solver.scheduler, ", ".join(counts)])
    return rows


def _labels(labels: dict[str, int]) -> str:
    if all(name == str(number) for name, number in labels.items()):
        return f"{len(labels)} without names: {min(labels.values())} to {max(labels.values())}"
    return ", ".join(f"{name} ({number})" for name, number in sorted(labels.items(), key=lambda item: item[1]))


def _shape(spec: TensorSpec) -> str:
    return f"[{', '.join(str(dim) for dim in spec.shape)}]"


def _columns(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]


def _count(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    return f"{number:.4g} T"


def _bytes(number: int) -> str:
    return f"{_count(number)}B" if number >= 1000 else f"{number} B"
