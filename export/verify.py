"""The parity gate: torch against the graphs that were written, piece by piece and as a whole.

Inputs are drawn from a stored seed, and torch's own outputs are kept in the bundle, so that
`latentc verify` can repeat the comparison on a device that has no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from latentc import schema
from latentc.backends import open_backend
from latentc.bundle import GraphBytes
from latentc.errors import ParityError
from latentc.parity import psnr_db, relative_l2
from latentc.sampler import run_once, sample
from latentc.table import SolverTable as RuntimeTable
from latentc.trajectory import noise_from_seed, trajectory_of_labels
from torch import Tensor, nn

from export.solver_table import SolverTable
from export.source import Source
from export.step import FusedStep
from export.write import REFERENCES
from models.latent_diffusion import ReferenceRequest

SEED = 20261
BATCH = 2


@dataclass(frozen=True)
class Bounds:
    """How far the graphs may be from torch."""

    relative_l2: float = 1e-5  # of each component's output, float32
    psnr_db: float = 60.0  # of the final image, against the diffusers pipeline


@dataclass(frozen=True)
class Verified:
    """A report whose bounds all hold, and the inputs and outputs that it speaks of."""

    parity: schema.Parity
    references: Mapping[str, np.ndarray]


def verify_graphs(
    source: Source, step: FusedStep, graphs: Mapping[str, GraphBytes], tables: tuple[SolverTable, ...], bounds: Bounds
) -> Verified:
    """Compares every component and one whole trajectory; raises ParityError with all that does not hold."""
    backend = open_backend("onnxruntime")
    engines = {name: backend.load_graph(graph) for name, graph in graphs.items()}
    figures: list[schema.Figure] = []
    references: dict[str, np.ndarray] = {}

    modules: Mapping[str, nn.Module] = {"denoise": step.denoise, "decode": step.decode}
    outputs = {"denoise": "prediction", "decode": "image"}
    for name, inputs in component_inputs(step).items():
        with torch.no_grad():
            expected = modules[name](*inputs.values()).numpy()
        arrays = {key: value.numpy() for key, value in inputs.items()}
        actual = run_once(backend, engines[name], arrays, outputs[name], expected.shape)
        figures.append(
            schema.Figure(
                tensor=f"{name}/{outputs[name]}",
                measure="relative_l2",
                value=relative_l2(actual, expected),
                bound=bounds.relative_l2,
                against="the torch module, on drawn inputs",
            )
        )
        references |= {f"{name}/input/{key}": value for key, value in arrays.items()}
        references[f"{name}/output/{outputs[name]}"] = expected

    model, table = step.model, _shortest(tables)
    labels = tuple(sorted(set(model.labels.values())))[:BATCH]
    request = ReferenceRequest(labels=labels, seed=SEED, steps=table.steps, cfg_scale=model.default_cfg_scale)
    expected_image = source.family.reference_image(source.directory, table.solver.fresh(), request).numpy()
    noise = noise_from_seed(SEED, (len(labels), *model.latent_shape), table.noise_draws)
    trajectory = trajectory_of_labels(_runtime_table(table), noise, labels, model.null_label, request.cfg_scale)
    image = schema.Image(**dict(zip(("channels", "height", "width"), model.image_shape, strict=True)))
    actual_image = sample(backend, engines["denoise"], engines["decode"], trajectory, image)
    figures.append(
        schema.Figure(
            tensor="trajectory/image",
            measure="psnr_db",
            value=psnr_db(actual_image, expected_image, peak=1.0),
            bound=bounds.psnr_db,
            against=f"{model.pipeline} of diffusers, same seed, {table.steps} steps of {table.solver.name}",
        )
    )
    references |= {"trajectory/noise": noise, "trajectory/image": expected_image}

    check_figures(figures)
    parity = schema.Parity(
        seed=SEED,
        steps=table.steps,
        solver=table.solver.name,
        cfg_scale=request.cfg_scale,
        labels=labels,
        references=REFERENCES,
        figures=tuple(figures),
    )
    return Verified(parity, references)


def check_figures(figures: list[schema.Figure]) -> None:
    """Raises ParityError that names tensor, measure, value and bound of each figure that does not hold."""
    failed = [
        f"{f.tensor}: {f.measure} is {f.value:.3g}, must be {'at most' if f.measure == 'relative_l2' else 'at least'} "
        f"{f.bound:g} (against {f.against})"
        for f in figures
        if not f.holds
    ]
    if failed:
        raise ParityError("; ".join(failed))


def component_inputs(step: FusedStep) -> dict[str, dict[str, Tensor]]:
    """Inputs of each graph, in the order of its module's parameters: drawn from SEED, all of them different."""
    generator = torch.Generator().manual_seed(SEED)
    slots, branches = 3, 2
    history = torch.randn(slots, BATCH, *step.model.latent_shape, generator=generator)
    row = torch.tensor([0.6, -0.64, 0.48])  # unit length: what the denoiser sees has unit variance
    conditioning = {c.name: c.example(branches, BATCH, generator) for c in step.model.conditioning}
    return {
        "denoise": {
            "history": history,
            "input_row": row,
            "timestep": torch.tensor([[999.0, 501.0], [250.0, 1.0]]),
            "guidance_weights": torch.tensor([step.model.default_cfg_scale, 1.0 - step.model.default_cfg_scale]),
            **conditioning,
        },
        "decode": {"history": history, "output_row": row},
    }


def _shortest(tables: tuple[SolverTable, ...]) -> SolverTable:
    """The default solver with the fewest calls: a whole trajectory, at the least cost for a large model."""
    return min((t for t in tables if t.solver.name == tables[0].solver.name), key=lambda t: t.calls)


def _runtime_table(table: SolverTable) -> RuntimeTable:
    """The table in float32, as the bundle keeps it."""
    return RuntimeTable(
        input_rows=table.input_rows.astype(np.float32),
        output_row=table.output_row.astype(np.float32),
        timesteps=table.timesteps.astype(np.float32),
        noise_draws=table.noise_draws,
    )
