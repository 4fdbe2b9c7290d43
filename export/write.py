"""Writes the files of a bundle into a directory: graphs first, then tables, then the seal.

The manifest goes last, after every other file was hashed, and its own hash goes beside it
(docs/bundle-format.md).
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import latentc
import msgspec
import numpy as np
import onnx_ir as ir
import safetensors.numpy
from latentc import schema
from latentc.bundle import MANIFEST, PARITY, GraphBytes
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from export.compile import NarrowedStep
from export.cost import GraphCost, cost_of_graph
from export.solver_table import SolverTable
from export.solvers import plain_settings
from export.source import Source
from models.latent_diffusion import LatentDiffusion

REFERENCES = "parity.safetensors"
_RUNS: Mapping[str, schema.RunsOnce] = {
    "prompt": "request",
    "schedule": "request",
    "denoise": "step",
    "decode": "request",
}
_RECORDED = ("torch", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def write_graphs(directory: Path, graphs: Mapping[str, ir.Model]) -> dict[str, GraphBytes]:
    """graphs/NAME.onnx and graphs/NAME.weights; returns their bytes, as the runtime takes them."""
    (directory / "graphs").mkdir()
    written = {}
    for name, model in graphs.items():
        path = directory / "graphs" / f"{name}.onnx"
        weights = path.with_suffix(".weights")
        weights.touch()  # a graph without large weights has none to write
        # The trace's notes (module paths, for islands) hold file names of this machine: equal exports are equal bytes.
        bare = model.clone()
        ClearMetadataAndDocStringPass()(bare)
        bare.metadata_props.clear()
        ir.save(bare, path, external_data=weights.name)
        written[name] = GraphBytes(name, memoryview(path.read_bytes()), weights.name, memoryview(weights.read_bytes()))
    return written


def write_tables(directory: Path, tables: Sequence[SolverTable]) -> tuple[schema.Table, ...]:
    """tables/SOLVER-STEPS.safetensors in float32; returns what the manifest says of them."""
    (directory / "tables").mkdir()
    records = []
    for table in tables:
        file = f"tables/{table.solver.name}-{table.steps}.safetensors"
        tensors = {
            "input_rows": table.input_rows.astype(np.float32),
            "output_row": table.output_row.astype(np.float32),
            "timesteps": table.timesteps.astype(np.float32),
        }
        safetensors.numpy.save_file(tensors, directory / file)
        records.append(
            schema.Table(
                solver=table.solver.name,
                steps=table.steps,
                calls=table.calls,
                noise_draws=table.noise_draws,
                file=file,
            )
        )
    return tuple(records)


def draft_manifest(
    source: Source,
    narrowed: NarrowedStep,
    tables: Sequence[SolverTable],
    records: tuple[schema.Table, ...],
    precision: schema.Precision,
    target: str,
) -> schema.Manifest:
    """All that the manifest says but the hashes of its files: enough to run the graphs."""
    model = narrowed.hoisted.step.model
    default = default_table(model, tables)
    return schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name=model.name,
        family=model.family,
        pipeline=model.pipeline,
        precision=precision,
        target=target,
        latent=schema.Latent(**dict(zip(("channels", "height", "width"), model.latent_shape, strict=True))),
        image=schema.Image(**dict(zip(("channels", "height", "width"), model.image_shape, strict=True))),
        conditioning=schema.LabelConditioning(labels=dict(model.labels), null_label=model.null_label),
        graphs={name: _graph_record(name, graph, default) for name, graph in narrowed.graphs.items()},
        hoisting=_hoisting_record(narrowed, default),
        solvers={
            t.solver.name: schema.Solver(
                scheduler=type(t.solver.scheduler).__name__, settings=plain_settings(t.solver.scheduler)
            )
            for t in tables
        },
        tables=records,
        defaults=schema.Defaults(solver=default.solver.name, steps=default.steps, cfg_scale=model.default_cfg_scale),
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


def seal(
    directory: Path, draft: schema.Manifest, parity: schema.Parity, references: Mapping[str, np.ndarray]
) -> schema.Manifest:
    """Writes the parity report, the manifest with every file's hash, and then the manifest's own hash."""
    (directory / PARITY).write_bytes(_pretty(parity))
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in references.items()}, directory / REFERENCES)
    manifest = msgspec.structs.replace(draft, files=_file_records(directory))
    data = _pretty(manifest)
    (directory / MANIFEST).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (directory / f"{MANIFEST}.sha256").write_text(f"{digest}  {MANIFEST}\n", encoding="ascii")
    return manifest


def default_table(model: LatentDiffusion, tables: Sequence[SolverTable]) -> SolverTable:
    """The first solver, at the pipeline's own number of steps, or at the number next to it that there is."""
    own = (table for table in tables if table.solver.name == tables[0].solver.name)
    return min(own, key=lambda table: (abs(table.steps - model.default_steps), table.steps))


def _graph_record(name: str, graph: ir.Model, table: SolverTable) -> schema.Graph:
    cost = _cost(name, graph, table)
    return schema.Graph(
        file=f"graphs/{name}.onnx",
        weights=f"graphs/{name}.weights",
        inputs=tuple(_tensor_spec(value) for value in graph.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in graph.graph.outputs),
        runs_once_per=_RUNS[name],
        nodes=cost.nodes,
        parameters=cost.parameters,
        weight_bytes=cost.weight_bytes,
        flops=cost.flops,
    )


def _cost(name: str, graph: ir.Model, table: SolverTable) -> GraphCost:
    """At batch 1 without guidance, at the default table; the schedule graph runs all its calls as one batch."""
    rows = table.calls if name == "schedule" else 1
    slots = 1 + table.calls + table.noise_draws
    return cost_of_graph(graph, {"batch": 1, "guidance_branches": rows, "slots": slots})


def _hoisting_record(narrowed: NarrowedStep, table: SolverTable) -> schema.Hoisting:
    layout, whole = narrowed.hoisted.layout, narrowed.hoisted.whole
    cost = _cost("denoise", whole, table)
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


def _file_records(directory: Path) -> dict[str, schema.FileRecord]:
    records = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            record = schema.FileRecord(sha256=digest, num_bytes=os.path.getsize(path))
            records[path.relative_to(directory).as_posix()] = record
    return records


def _pretty(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
