"""What the manifest says of a compiled pipeline (docs/bundle-format.md), all but the hashes of its files."""

import importlib.metadata
from collections.abc import Mapping, Sequence

import latentc
import onnx_ir as ir
from latentc import schema

from export.compile import CACHED, NarrowedStep, typical_dims
from export.cost import GraphCost, cost_of_graph
from export.examples import text_rule
from export.live_memory import peak_activation_bytes
from export.solver_table import SolverTable
from export.solvers import plain_settings
from export.source import Source
from export.step import FusedStep
from export.step_cache.levels import LEVELS
from models.latent_diffusion import LatentDiffusion, TextEncoder

_RECORDED = ("torch", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def draft_manifest(
    source: Source,
    narrowed: NarrowedStep,
    tables: Sequence[SolverTable],
    records: tuple[schema.Table, ...],
    precision: schema.Precision,
    target: str,
) -> schema.Manifest:
    """All that the manifest says but the hashes of its files: enough to run the graphs."""
    step = narrowed.hoisted.step
    model = step.model
    default = default_table(model, tables)
    factor = model.image_shape[1] // model.latent_shape[1]
    latent = dict(zip(("channels", "height", "width"), model.latent_shape, strict=True))
    sizes, img2img = None, None
    if model.sizes is not None:
        pixels = [factor * n for n in (model.sizes.multiple, model.sizes.minimum, model.sizes.maximum)]
        sizes = schema.SizeRange(**dict(zip(("multiple", "minimum", "maximum"), pixels, strict=True)))
    if "encode" in narrowed.graphs:
        img2img = schema.Img2Img(strength=model.default_strength, rounds_up=model.strength_rounds_up)
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name=model.name,
        family=model.family,
        pipeline=model.pipeline,
        precision=precision,
        target=target,
        latent=schema.Latent(**latent, multiple=model.sizes.multiple if model.sizes is not None else 1),
        image=schema.Image(**dict(zip(("channels", "height", "width"), model.image_shape, strict=True))),
        sizes=sizes,
        img2img=img2img,
        conditioning=conditioning_record(model),
        guided=model.guided,
        guided_channels=model.guided_channels,
        graphs={name: _graph_record(name, narrowed, default, target) for name in narrowed.graphs},
        hoisting=_hoisting_record(narrowed, default),
        solvers={
            t.solver.name: schema.Solver(
                scheduler=type(t.solver.scheduler).__name__, settings=plain_settings(t.solver.scheduler)
            )
            for t in tables
        },
        tables=records,
        defaults=schema.Defaults(
            solver=default.solver.name,
            steps=default.steps,
            cfg_scale=model.default_cfg_scale,
            guidance=model.default_guidance,
        ),
        step_cache=_step_cache_record(narrowed),
        files={},
        provenance=schema.Provenance(
            source=source.directory.name,
            source_sha256=dict(source.sha256),
            versions={
                "latentc": latentc.__version__,
                **{package: importlib.metadata.version(package) for package in _RECORDED},
            },
        ),
    )


def conditioning_record(model: LatentDiffusion) -> schema.LabelConditioning | schema.TextConditioning:
    """What the manifest says of labels or text encoders."""
    if model.labels is not None:
        return schema.LabelConditioning(labels=dict(model.labels.numbers), null_label=model.labels.null)
    return schema.TextConditioning(
        encoders=tuple(
            schema.TextEncoder(
                graph=encoder.name,
                tokenizer=tokenizer_file(encoder),
                pad_id=encoder.pad_id,
                prompt=text_rule(encoder.prompt),
                negative=text_rule(encoder.negative),
            )
            for encoder in model.text_encoders
        ),
        zero_null=model.zero_null,
    )


def tokenizer_file(encoder: TextEncoder) -> str:
    """Where a bundle keeps the tokenizer of a text encoder."""
    return f"tokenizers/{encoder.name}.json"


def default_table(model: LatentDiffusion, tables: Sequence[SolverTable]) -> SolverTable:
    """The first solver at the default size, at the pipeline's own number of steps, or at the nearest that there is."""
    size = tables[0].schedule.size
    own = (table for table in tables if table.solver.name == tables[0].solver.name and table.schedule.size == size)
    return min(own, key=lambda table: (abs(table.steps - model.default_steps), table.steps))


def _graph_record(name: str, narrowed: NarrowedStep, table: SolverTable, target: str) -> schema.Graph:
    graph = narrowed.graphs[name]
    cost = _cost(name, graph, narrowed.hoisted.step, table)
    return schema.Graph(
        file=f"graphs/{name}.onnx",
        weights=f"graphs/{narrowed.shared_weights.get(name, name)}.weights",
        inputs=tuple(_tensor_spec(value) for value in graph.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in graph.graph.outputs),
        runs_once_per="step" if name in ("denoise", CACHED) else "request",
        nodes=cost.nodes,
        parameters=cost.parameters,
        weight_bytes=cost.weight_bytes,
        int8_bytes=_int8_bytes(graph),
        flops=cost.flops,
        activation_bytes=_activation_bytes(name, narrowed, table, target),
    )


def _int8_bytes(graph: ir.Model) -> int:
    tensors = {id(value.const_value): value.const_value for value in graph.graph.initializers.values()}
    return sum(t.nbytes for t in tensors.values() if t is not None and t.dtype is ir.DataType.INT8)


def _activation_bytes(name: str, narrowed: NarrowedStep, table: SolverTable, target: str) -> int:
    """Of one picture at the default table with the default guidance; the prompt graph runs branch by branch."""
    step, layout = narrowed.hoisted.step, narrowed.hoisted.layout
    branches = 2 if step.model.default_cfg_scale > 1 else 1
    rows = {"denoise": branches, CACHED: branches}
    if layout is not None:
        rows["schedule"] = table.calls * (1 if layout.rows_per_step == "1" else branches)
    dims = _dims(name, step, table) | {"guidance_branches": rows.get(name, 1), "texts": branches}
    # ONNX Runtime's CPU has no half arithmetic: it computes in single what the graph says is half.
    return peak_activation_bytes(narrowed.graphs[name], dims, half_bytes=4 if target == "onnxruntime" else 2)


def _cost(name: str, graph: ir.Model, step: FusedStep, table: SolverTable) -> GraphCost:
    """At batch 1 without guidance, at the default table; the schedule graph runs all its calls as one batch."""
    rows = table.calls if name == "schedule" else 1
    return cost_of_graph(graph, _dims(name, step, table) | {"guidance_branches": rows, "texts": 1})


def _dims(name: str, step: FusedStep, table: SolverTable) -> dict[str, int]:
    """The sizes of one picture at the default table, all but the guidance branches and the number of texts."""
    tokens = max((e.prompt.length for e in step.model.text_encoders if e.name == name), default=0)
    slots = 1 + table.calls + table.noise_draws
    return typical_dims(step, table.calls) | {"batch": 1, "slots": slots, "tokens": tokens}


def _hoisting_record(narrowed: NarrowedStep, table: SolverTable) -> schema.Hoisting:
    layout, whole = narrowed.hoisted.layout, narrowed.hoisted.whole
    cost = _cost("denoise", whole, narrowed.hoisted.step, table)
    return schema.Hoisting(
        rows_per_step="one" if layout is None or layout.rows_per_step == "1" else "batch",
        row_width=layout.width if layout is not None else 0,
        schedule_inputs=tuple(
            schema.ScheduleInput(name=item.name, feed=item.feed.value)
            for item in (layout.schedule_inputs if layout is not None else ())
        ),
        whole_nodes=cost.nodes,
        whole_parameters=cost.parameters,
        whole_weight_bytes=cost.weight_bytes,
        whole_flops=cost.flops,
    )


def _step_cache_record(narrowed: NarrowedStep) -> schema.StepCache | None:
    split = narrowed.split
    if split is None:
        return None
    return schema.StepCache(
        first_block=split.first, end_block=split.end, blocks=split.count, residuals=split.residuals, levels=dict(LEVELS)
    )


def _tensor_spec(value: ir.Value) -> schema.TensorSpec:
    assert value.name is not None, "a graph's inputs and outputs have names"
    assert value.shape is not None, f"{value.name} was traced without a shape"
    assert value.dtype is not None, f"{value.name} was traced without a type"
    dtypes: Mapping[ir.DataType, schema.DType] = {
        ir.DataType.FLOAT: "float32",
        ir.DataType.INT64: "int64",
    }
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return schema.TensorSpec(name=value.name, dtype=dtypes[value.dtype], shape=dims)


def table_record(table: SolverTable, file: str) -> schema.Table:
    """What the manifest says of a table that lies in `file`."""
    return schema.Table(
        solver=table.solver.name,
        steps=table.steps,
        calls=table.calls,
        noise_draws=table.noise_draws,
        file=file,
        size=table.schedule.pixels,
        img2img=bool(table.over_image),
    )
