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
from torch import nn

from export.compile import NarrowedStep
from export.hoist import ROWS, SCHEDULE_ROW
from export.parity_inputs import SEED, step_inputs
from export.parity_request import (
    over_image,
    parity_request,
    parity_skipped,
    parity_strength,
    parity_table,
    parity_trajectory,
)
from export.proof import hoisted_values, schedule_inputs
from export.solver_table import SolverTable
from export.source import Source
from export.write import REFERENCES


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
    tokenizers: Mapping[str, memoryview],
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

    step = narrowed.hoisted.step
    table = parity_table(step, tables)
    request = parity_request(step, table)
    against = f"{step.model.pipeline} of diffusers, same seed, {table.steps} steps of {table.solver.name}"
    drawn = parity_trajectory(step, table, tokenizers)
    drawings = {"image": (request, drawn)}
    references["trajectory/noise"] = drawn.noise
    skipped = None
    if "encode" in narrowed.graphs:
        skipped = parity_skipped(step, table)
        over = parity_trajectory(step, table, tokenizers, skipped)
        assert over.init is not None, "a trajectory over an image holds the image"
        drawings["over_image"] = (over_image(request, parity_strength(step, table), over.init.pixels), over)
        references |= {
            "trajectory/over_image_noise": over.noise,
            "trajectory/over_image_encoder_noise": over.init.noise,
            "trajectory/over_image_pixels": over.init.pixels,
        }
    for name, (asked, trajectory) in drawings.items():
        expected_image = source.family.reference_image(
            source.directory, table.solver.fresh(), asked, source.loras
        ).numpy()
        actual_image = sample(backend, engines, draft, trajectory)
        figures.append(
            schema.Figure(
                tensor=f"trajectory/{name}",
                measure="psnr_db",
                value=psnr_db(actual_image, expected_image, peak=1.0),
                bound=bounds.psnr_db,
                against=against,
            )
        )
        references[f"trajectory/{name}"] = expected_image
    check_figures(figures)
    assert request.width, "the parity request has a size"
    assert request.height, "the parity request has a size"
    parity = schema.Parity(
        seed=SEED,
        steps=table.steps,
        solver=table.solver.name,
        cfg_scale=request.cfg_scale,
        guidance=request.guidance,
        labels=request.labels,
        prompts=request.prompts,
        negative_prompts=request.negative_prompts,
        width=request.width,
        height=request.height,
        skipped=skipped,
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
        raise ParityError(f"{'; '.join(failed)}; --rtol and --min-psnr set other bounds, --dump shows the phases")


def components(narrowed: NarrowedStep) -> dict[str, Component]:
    """Every graph of the bundle, in the order in which a request runs them."""
    step, parts = narrowed.hoisted.step, narrowed.hoisted.parts
    inputs = step_inputs(step, "encode" in narrowed.graphs)
    known = inputs["denoise"]
    torch_module = "the torch module, on drawn inputs"
    found: dict[str, Component] = {}
    for encoder in step.model.text_encoders:
        outputs = dict(zip(encoder.outputs, _run_torch(encoder.module, inputs[encoder.name]), strict=True))
        found[encoder.name] = Component(inputs[encoder.name], outputs, torch_module)
    hoisted = hoisted_values(narrowed.hoisted.whole, parts, known)
    before = "the graph before hoisting, on drawn inputs"
    if "prompt" in parts.graphs:
        found["prompt"] = Component(_taken("prompt", narrowed, known), hoisted["prompt"], before)
        known = known | hoisted["prompt"]
    if "schedule" in parts.graphs:
        assert parts.layout is not None, "a schedule graph comes with its layout"
        found["schedule"] = Component(schedule_inputs(parts.layout, known), hoisted["schedule"], before)
        known = known | {SCHEDULE_ROW: hoisted["schedule"][ROWS]}
    prediction, *_ = _run_torch(step.denoise, inputs["denoise"])
    found["denoise"] = Component(_taken("denoise", narrowed, known), {"prediction": prediction}, torch_module)
    image, *_ = _run_torch(step.decode, inputs["decode"])
    found["decode"] = Component(inputs["decode"], {"image": image}, torch_module)
    if "encode" in narrowed.graphs:
        assert step.model.encoder is not None, "an encode graph was traced from the encoder"
        latents, *_ = _run_torch(step.model.encoder, inputs["encode"])
        found["encode"] = Component(inputs["encode"], {"latents": latents}, torch_module)
    return found


def _run_torch(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of a module that takes `inputs` in their order."""
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(value) for value in inputs.values()))
    return [value.numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _taken(graph: str, narrowed: NarrowedStep, known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `graph` takes of all that is known."""
    return {value.name or "": known[value.name or ""] for value in narrowed.graphs[graph].graph.inputs}
