"""The parity gate: torch against the graphs that were written, piece by piece and as a whole.

Inputs are drawn from a stored seed, and what torch returns for them is kept in the bundle, so that
`latentc verify` can repeat the comparison on a device that has no torch. Prompt and schedule graphs
have no torch module of their own: they are held to the values that they replace in the graph before
hoisting, which itself is held to torch.
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
from latentc.trajectory import Trajectory, noise_from_seed, trajectory_of_labels

from export.compile import NarrowedStep
from export.hoist import ROWS, SCHEDULE_ROW
from export.proof import hoisted_values, schedule_inputs
from export.solver_table import SolverTable
from export.source import Source
from export.step import FusedStep
from export.write import REFERENCES
from models.latent_diffusion import ReferenceRequest

SEED = 20261
BATCH = 2
_TIMESTEP = 501.0  # one for all rows: within a step they are equal, and hoisting builds on it


@dataclass(frozen=True)
class Bounds:
    """How far the graphs may be from torch."""

    relative_l2: float = 1e-5  # of each component's output
    psnr_db: float = 60.0  # of the final image, against the diffusers pipeline


BOUNDS: Mapping[schema.Precision, Bounds] = {"fp32": Bounds(), "fp16": Bounds(relative_l2=1e-2, psnr_db=35.0)}


@dataclass(frozen=True)
class Component:
    """What one graph is given and what it must return."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    against: str


@dataclass(frozen=True)
class Verified:
    """A report whose bounds all hold, and the inputs and outputs that it speaks of."""

    parity: schema.Parity
    references: Mapping[str, np.ndarray]


def verify_graphs(
    source: Source,
    narrowed: NarrowedStep,
    draft: schema.Manifest,
    graphs: Mapping[str, GraphBytes],
    tables: tuple[SolverTable, ...],
    bounds: Bounds,
) -> Verified:
    """Compares every graph and one whole trajectory; raises ParityError with all that does not hold."""
    backend = open_backend("onnxruntime")
    engines = {name: backend.load_graph(graph) for name, graph in graphs.items()}
    figures: list[schema.Figure] = []
    references: dict[str, np.ndarray] = {}
    for name, component in components(narrowed).items():
        shapes = {key: value.shape for key, value in component.outputs.items()}
        actual = run_once(backend, engines[name], component.inputs, shapes)
        for key, expected in component.outputs.items():
            figures.append(
                schema.Figure(
                    tensor=f"{name}/{key}",
                    measure="relative_l2",
                    value=relative_l2(actual[key], expected),
                    bound=bounds.relative_l2,
                    against=component.against,
                )
            )
        references |= {f"{name}/input/{key}": value for key, value in component.inputs.items()}
        references |= {f"{name}/output/{key}": value for key, value in component.outputs.items()}

    model, table = narrowed.hoisted.step.model, shortest_table(tables)
    request = parity_request(narrowed.hoisted.step, table)
    expected_image = source.family.reference_image(
        source.directory, table.solver.fresh(), request, source.loras
    ).numpy()
    trajectory = parity_trajectory(narrowed.hoisted.step, table)
    actual_image = sample(backend, engines, draft, trajectory)
    figures.append(
        schema.Figure(
            tensor="trajectory/image",
            measure="psnr_db",
            value=psnr_db(actual_image, expected_image, peak=1.0),
            bound=bounds.psnr_db,
            against=f"{model.pipeline} of diffusers, same seed, {table.steps} steps of {table.solver.name}",
        )
    )
    references |= {"trajectory/noise": trajectory.noise, "trajectory/image": expected_image}
    check_figures(figures)
    parity = schema.Parity(
        seed=SEED,
        steps=table.steps,
        solver=table.solver.name,
        cfg_scale=request.cfg_scale,
        labels=request.labels,
        references=REFERENCES,
        figures=tuple(figures),
        phases=narrowed.hoisted.figures,
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


def step_inputs(step: FusedStep) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of the two modules of a step, in the order of their parameters: drawn from SEED."""
    generator = torch.Generator().manual_seed(SEED)
    slots, branches = 3, 2
    history = torch.randn(slots, BATCH, *step.model.latent_shape, generator=generator).numpy()
    row = np.array([0.6, -0.64, 0.48], np.float32)  # unit length: what the denoiser sees has unit variance
    scale = step.model.default_cfg_scale
    conditioning = {c.name: c.example(branches, BATCH, generator).numpy() for c in step.model.conditioning}
    return {
        "denoise": {
            "history": history,
            "input_row": row,
            "timestep": np.full((branches, BATCH), _TIMESTEP, np.float32),
            "guidance_weights": np.array([scale, 1.0 - scale], np.float32),
            **conditioning,
        },
        "decode": {"history": history, "output_row": row},
    }


def phase_inputs(step: FusedStep) -> dict[str, dict[str, np.ndarray]]:
    """As step_inputs, with the mean of the guidance branches in place of guidance.

    (4, -3) multiplies the rounding of a branch by five: between two correct float32 graphs of the shipped
    model that is 1.0e-6 against 2.9e-7 of the mean. A phase is held to what it does to the denoiser.
    """
    inputs = step_inputs(step)
    branches = len(inputs["denoise"]["guidance_weights"])
    inputs["denoise"]["guidance_weights"] = np.full(branches, 1 / branches, np.float32)
    return inputs


def components(narrowed: NarrowedStep) -> dict[str, Component]:
    """Every graph of the bundle, in the order in which a request runs them."""
    step, parts = narrowed.hoisted.step, narrowed.hoisted.parts
    inputs = step_inputs(step)
    known, decode_inputs = inputs["denoise"], inputs["decode"]
    found: dict[str, Component] = {}
    hoisted = hoisted_values(narrowed.hoisted.whole, parts, known)
    before = "the graph before hoisting, on drawn inputs"
    if "prompt" in parts.graphs:
        found["prompt"] = Component(_taken("prompt", narrowed, known), hoisted["prompt"], before)
        known = known | hoisted["prompt"]
    if "schedule" in parts.graphs:
        assert parts.layout is not None, "a schedule graph comes with its layout"
        found["schedule"] = Component(schedule_inputs(parts.layout, known), hoisted["schedule"], before)
        known = known | {SCHEDULE_ROW: hoisted["schedule"][ROWS]}
    with torch.no_grad():
        prediction = step.denoise(*(torch.from_numpy(v) for v in inputs["denoise"].values())).numpy()
        image = step.decode(*(torch.from_numpy(v) for v in decode_inputs.values())).numpy()
    torch_module = "the torch module, on drawn inputs"
    found["denoise"] = Component(_taken("denoise", narrowed, known), {"prediction": prediction}, torch_module)
    found["decode"] = Component(decode_inputs, {"image": image}, torch_module)
    return found


def parity_request(step: FusedStep, table: SolverTable) -> ReferenceRequest:
    """Two labels, the default guidance, the fixed seed."""
    labels = tuple(sorted(set(step.model.labels.values())))[:BATCH]
    return ReferenceRequest(labels=labels, seed=SEED, steps=table.steps, cfg_scale=step.model.default_cfg_scale)


def parity_trajectory(step: FusedStep, table: SolverTable) -> Trajectory:
    """The arrays of `parity_request`, as the runtime makes them."""
    request = parity_request(step, table)
    noise = noise_from_seed(SEED, (len(request.labels), *step.model.latent_shape), table.noise_draws)
    return trajectory_of_labels(runtime_table(table), noise, request.labels, step.model.null_label, request.cfg_scale)


def shortest_table(tables: tuple[SolverTable, ...]) -> SolverTable:
    """The default solver with the fewest calls: a whole trajectory, at the least cost for a large model."""
    return min((t for t in tables if t.solver.name == tables[0].solver.name), key=lambda t: t.calls)


def runtime_table(table: SolverTable) -> RuntimeTable:
    """The table in float32, as the bundle keeps it."""
    return RuntimeTable(
        input_rows=table.input_rows.astype(np.float32),
        output_row=table.output_row.astype(np.float32),
        timesteps=table.timesteps.astype(np.float32),
        noise_draws=table.noise_draws,
    )


def _taken(graph: str, narrowed: NarrowedStep, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `graph` takes of all that is known."""
    return {value.name or "": known[value.name or ""] for value in narrowed.graphs[graph].graph.inputs}
