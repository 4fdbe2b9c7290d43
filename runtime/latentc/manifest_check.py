"""What the types of a manifest cannot say: that everything it refers to is there, in range, and fits together.

Each check yields what is wrong as the end of one line, "the manifest …". The reader stops at the first: a check may
rely on those before it.
"""

import re
from collections import Counter
from collections.abc import Iterator

import msgspec

from latentc.schema import Dim, Graph, LabelConditioning, Manifest, TextEncoder

REQUIRED_GRAPHS = ("denoise", "decode")
OWN_GRAPHS = frozenset(
    {"prompt", "schedule", "denoise", "denoise_cached", "decode", "encode"}
)  # what they do, the runtime knows
TEXT_INPUTS = frozenset({"input_ids", "attention_mask"})
# What a request gives the denoiser, and what the loop does: a text encoder's output of such a name would replace it.
OWN_TENSORS = frozenset({
    "class_labels", "grid_columns", "grid_rows", "guidance", "guidance_weights", "history", "input_row", "prediction",
    "schedule_row", "timestep",
})  # fmt: skip

CACHED = "denoise_cached"
_MAX_RESIDUALS = 8
_MAX_DB = 200.0
_MAX_NUMBER = 2**24  # of sizes, counts and labels: far above any model, and no product of them overflows
_MAX_DIM = 256  # characters
_GRAPH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")  # engines are files of this name


def problems(manifest: Manifest, report: str) -> Iterator[str]:
    """What is wrong with the manifest, first things first; `report` is the file of the parity report."""
    yield from _graph_names(manifest)
    yield from _files(manifest, report)
    yield from _numbers(manifest)
    yield from _encoders(manifest)
    yield from _graphs(manifest)
    yield from _step_cache(manifest)
    yield from _sizes(manifest)
    yield from _solvers(manifest)


def _text_encoders(manifest: Manifest) -> tuple[TextEncoder, ...]:
    conditioning = manifest.conditioning
    return () if isinstance(conditioning, LabelConditioning) else conditioning.encoders


def _graph_names(manifest: Manifest) -> Iterator[str]:
    encoders = [encoder.graph for encoder in _text_encoders(manifest)]
    for name in manifest.graphs:
        if not _GRAPH_NAME.fullmatch(name):
            yield f"has a graph named {name[:80]!r}; names are at most 64 of A-Z a-z 0-9 _ -"
    required = (*REQUIRED_GRAPHS, *encoders, *(["encode"] if manifest.img2img else []))
    missing = [name for name in required if name not in manifest.graphs]
    if missing:
        yield f"has no graph {', '.join(missing)}"


def _files(manifest: Manifest, report: str) -> Iterator[str]:
    used = [report, *(table.file for table in manifest.tables)]
    used += [encoder.tokenizer for encoder in _text_encoders(manifest)]
    used += [file for graph in manifest.graphs.values() for file in (graph.file, graph.weights)]
    for file in used:
        if file not in manifest.files:
            yield f"refers to {file}, which it does not list"


def _numbers(manifest: Manifest) -> Iterator[str]:
    encoders, conditioning = _text_encoders(manifest), manifest.conditioning
    counts = [n for table in manifest.tables for n in (table.steps, table.calls, table.noise_draws + 1)]
    counts += [n for table in manifest.tables for n in table.size or ()]
    counts += [n for encoder in encoders for n in (encoder.prompt.length, encoder.negative.length, encoder.pad_id + 1)]
    if isinstance(conditioning, LabelConditioning):
        counts += [conditioning.null_label + 1, *(label + 1 for label in conditioning.labels.values())]
    sizes = [*msgspec.structs.astuple(manifest.latent), *msgspec.structs.astuple(manifest.image)]
    sizes += msgspec.structs.astuple(manifest.sizes) if manifest.sizes else ()
    sizes += [] if manifest.guided_channels is None else [manifest.guided_channels]
    in_range = all(1 <= number < _MAX_NUMBER for number in (*sizes, *counts))
    if not in_range or manifest.hoisting.whole_parameters < 1:  # a share of it is told
        yield "has a size, count or label that is out of range"
    for name, graph in manifest.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            if not all(_is_dim(dim) for dim in spec.shape):
                yield f"has a tensor {spec.name[:80]!r} of graph {name} with a size that is out of range"


def _is_dim(dim: Dim) -> bool:
    if isinstance(dim, int):
        return 0 <= dim < _MAX_NUMBER
    return len(dim) <= _MAX_DIM and all(len(digits) <= 8 for digits in re.findall(r"\d+", dim))


def _encoders(manifest: Manifest) -> Iterator[str]:
    encoders = _text_encoders(manifest)
    if not isinstance(manifest.conditioning, LabelConditioning) and not encoders:
        yield "has neither labels nor a text encoder"
    named = Counter(encoder.graph for encoder in encoders)
    for name, count in named.items():
        if name in OWN_GRAPHS:
            yield f"has a text encoder {name}, which is the name of another graph"
        if count > 1:
            yield f"has {count} text encoders {name}"
    outputs: Counter[str] = Counter()
    for name in named:
        given, made = _names(manifest.graphs[name])
        if not given or not set(given) <= TEXT_INPUTS:
            yield f"has a text encoder {name} with inputs {_listed(given)}, expected {_listed(sorted(TEXT_INPUTS))}"
        specs = (*manifest.graphs[name].inputs, *manifest.graphs[name].outputs)
        first = {spec.shape[0] if spec.shape else 1 for spec in specs}  # [texts, …], as many as there are
        if len(first) != 1 or not str(*first).isidentifier():
            yield f"has a text encoder {name} whose tensors are not one row for each text"
        outputs.update(made)
    for output, count in outputs.items():
        if output in OWN_TENSORS or count > 1:
            yield f"has a text encoder's output {output[:80]!r}, which is the name of another tensor"


def _graphs(manifest: Manifest) -> Iterator[str]:
    """The inputs and outputs by which the runtime calls its own graphs."""
    conditioning = {"guidance_weights", "grid_rows", "grid_columns"}
    conditioning |= {"class_labels"} if isinstance(manifest.conditioning, LabelConditioning) else set()
    conditioning |= {"guidance"} if manifest.defaults.guidance is not None else set()
    for encoder in _text_encoders(manifest):
        conditioning |= set(_names(manifest.graphs[encoder.graph])[1])
    inputs = {"decode": {"history", "output_row"}, "encode": {"image", "noise"}, "prompt": conditioning}
    inputs["schedule"] = {item.name for item in manifest.hoisting.schedule_inputs}
    outputs = {"decode": "image", "encode": "latents", "schedule": "rows"}
    for name, allowed in inputs.items():
        if name not in manifest.graphs:
            continue
        given, made = _names(manifest.graphs[name])
        whole = name not in ("decode", "schedule") or set(given) == allowed
        if not whole or not set(given) <= allowed or len(set(given)) != len(given):
            yield f"has a graph {name} with inputs {_listed(given)}, expected {_listed(sorted(allowed))}"
        if name in outputs and made != [outputs[name]]:
            yield f"has a graph {name} with outputs {_listed(made)}, expected {outputs[name]}"


def _step_cache(manifest: Manifest) -> Iterator[str]:
    """Two graphs that hand over residuals, levels that every table knows, and lists of calls that can be run."""
    cache = manifest.step_cache
    if (cache is None) != (CACHED not in manifest.graphs):
        yield f"has a graph {CACHED} without a step cache, or a step cache without that graph"
    levels = cache.levels if cache is not None else {}
    for table in manifest.tables:
        if table.cached.keys() != levels.keys():
            yield f"has a table {table.solver[:80]} {table.steps} whose levels of the step cache are not the bundle's"
        for level, cached in table.cached.items():
            calls = cached.calls
            if list(calls) != sorted(set(calls)) or (calls and not 1 <= calls[0] <= calls[-1] < table.calls):
                yield f"has cached calls of {table.solver[:80]} {table.steps} ({level[:80]}) that are out of range"
    if cache is None:
        return
    if not cache.residuals or not 1 <= len(cache.residuals) <= _MAX_RESIDUALS:
        yield "has a step cache without residuals, or with too many"
    if not 0 <= cache.first_block < cache.end_block <= cache.blocks < _MAX_NUMBER or not levels:
        yield "has a step cache with blocks that are out of range, or without levels"
    if any(not _GRAPH_NAME.fullmatch(level) or not 0 < least < _MAX_DB for level, least in levels.items()):
        yield "has a level of the step cache that is out of range"
    inputs, outputs = _names(manifest.graphs["denoise"])
    if sorted(outputs) != sorted(("prediction", *cache.residuals)):
        yield f"has a graph denoise with outputs {_listed(outputs)}, which are not prediction and residuals"
    read, made = _names(manifest.graphs[CACHED])
    if made != ["prediction"] or not set(cache.residuals) <= set(read) <= {*inputs, *cache.residuals}:
        yield f"has a graph {CACHED} with inputs {_listed(read)}, which are not those of denoise and residuals"


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    """Of the inputs and of the outputs."""
    return [spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs]


def _listed(names: list[str]) -> str:
    return ascii(", ".join(names)[:200])[1:-1] or "none"


def _sizes(manifest: Manifest) -> Iterator[str]:
    latent, image, sizes = manifest.latent, manifest.image, manifest.sizes
    unlike = image.height * latent.width != image.width * latent.height or image.height % latent.height
    if latent.height % latent.multiple or latent.width % latent.multiple or unlike:
        yield "has sizes of latents and image that do not fit each other"
    if sizes is not None:
        unit = image.height // latent.height * latent.multiple
        if sizes.multiple != unit or sizes.minimum % unit or sizes.minimum > sizes.maximum:
            yield f"has sizes that do not fit its latents: a multiple of {unit}, and a minimum up to the maximum"


def _solvers(manifest: Manifest) -> Iterator[str]:
    pairs = {(table.solver, table.steps) for table in manifest.tables}
    if (manifest.defaults.solver, manifest.defaults.steps) not in pairs:
        yield "has no table for its own defaults"
    unknown = sorted({solver for solver, _ in pairs} - set(manifest.solvers))
    if unknown:
        yield f"has tables of {', '.join(unknown)} but no such solver"
