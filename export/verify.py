"""The parity gate: torch against the graphs that were written, piece by piece and as a whole.

Inputs are drawn from a stored seed, and what torch returns for them is kept in the bundle, so that
`latentc verify` can repeat the comparison on a device that has no torch. Prompt and schedule graphs
have no torch module of their own: they are held to the values that they replace in the graph before
hoisting, which itself is held to torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from latentc import schema
from latentc.backends import open_backend
from latentc.backends.protocol import Engine
from latentc.bundle import GraphBytes
from latentc.errors import ParityError
from latentc.parity import psnr_db, relative_l2
from latentc.sampler import run_once, sample
from latentc.stages import OneAtATime
from latentc.trajectory import Trajectory
from latentc.verification import OF_FP32, TRAJECTORY
from torch import nn

from export.compile import NarrowedStep
from export.parity_inputs import SEED, Drawn
from export.parity_request import (
    over_image,
    parity_request,
    parity_skipped,
    parity_strength,
    parity_table,
    parity_trajectory,
)
from export.proof import handed_over, schedule_inputs, taken
from export.reach import Reach
from export.segment_engine import SegmentEngine
from export.solver_table import SolverTable
from export.source import Source
from export.step import FusedStep
from export.write import REFERENCES
from models.latent_diffusion import ReferenceRequest

_LARGE_BYTES = 64 << 20  # of weights
TORCH = "the torch module, on drawn inputs"


@dataclass(frozen=True)
class Bounds:
    """How far the graphs may be from torch."""

    relative_l2: float = 1e-5  # of each component's output
    psnr_db: float = 60.0  # of the final image, against the diffusers pipeline


BOUNDS: Mapping[schema.Precision, Bounds] = {
    "fp32": Bounds(),
    "fp16": Bounds(relative_l2=1e-2, psnr_db=35.0),
    "int8": Bounds(relative_l2=5e-2, psnr_db=35.0),  # of the denoiser; the other graphs are float32
}


@dataclass(frozen=True)
class Component:
    """What one graph is given and what it must return."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    against: str


@dataclass(frozen=True)
class Checked:
    """What the checks of an export share: how far they go, what is compared on, and what the prologue must return."""

    reach: Reach
    drawn: Drawn
    handed_over: Mapping[str, Mapping[str, np.ndarray]]  # of the graph before hoisting: prompt and schedule, or nothing


@dataclass(frozen=True)
class Verified:
    """A report whose bounds all hold, and the inputs and outputs that it speaks of."""

    parity: schema.Parity
    references: Mapping[str, np.ndarray]


def verify_graphs(
    source: Source,
    narrowed: NarrowedStep,
    checked: Checked,
    draft: schema.Manifest,
    graphs: Mapping[str, GraphBytes],
    directory: Path,
    tables: tuple[SolverTable, ...],
    tokenizers: Mapping[str, memoryview],
    bounds: Bounds,
) -> Verified:
    """Compares every graph and one whole trajectory; raises ParityError with all that does not hold.

    `directory` is where the graphs were written. A trajectory beyond the export's reach is left out, and the report
    says so.
    """
    backend = open_backend("onnxruntime")

    def load(name: str) -> Engine:
        # What the runtime makes of a large graph (packed and converted weights) is for `latentc verify` to compare.
        large = len(graphs[name].weights) > _LARGE_BYTES
        return SegmentEngine(directory / f"{name}.onnx") if large else backend.load_graph(graphs[name])

    engines = OneAtATime(tuple(graphs), load)
    figures: list[schema.Figure] = []
    phases = list(narrowed.hoisted.figures)
    references: dict[str, np.ndarray] = {}
    for name, component in components(narrowed, checked).items():
        shapes = {key: value.shape for key, value in component.outputs.items()}
        actual = run_once(backend, engines[name], component.inputs, shapes)
        bound = bounds.relative_l2
        if narrowed.int8 is not None and name not in narrowed.narrow_graphs:
            bound = min(bound, BOUNDS["fp32"].relative_l2)
        for key, expected in component.outputs.items():
            figures.append(_l2(f"{name}/{key}", actual[key], expected, bound, component.against))
            if name in narrowed.wide_outputs and checked.reach.is_beyond(name):
                # No phase of it was compared with the one before: in float32 it is held to torch itself.
                wide = narrowed.wide_outputs[name][key]
                phases.append(_l2(f"{name}/{key}", wide, expected, BOUNDS["fp32"].relative_l2, f"in float32: {TORCH}"))
        references |= {f"{name}/input/{key}": value for key, value in component.inputs.items()}
        references |= {f"{name}/output/{key}": value for key, value in component.outputs.items()}

    step = narrowed.hoisted.step
    table = parity_table(step, tables)
    request = parity_request(step, table)
    skipped = parity_skipped(step, table) if "encode" in narrowed.graphs and checked.reach.runs_trajectory else None
    if checked.reach.runs_trajectory:
        drawn, images = _trajectories(source, step, table, request, skipped, tokenizers)
        references |= images
        against = f"{step.model.pipeline} of diffusers, same seed, {table.steps} steps of {table.solver.name}"
        for name, trajectory in drawn.items():
            image = sample(backend, engines, draft, trajectory)
            compared = {f"trajectory/{name}": (images[f"trajectory/{name}"], against)}
            if name == "image" and narrowed.picture is not None:
                references[f"{TRAJECTORY}/{OF_FP32}"] = narrowed.picture
                compared[f"{TRAJECTORY}/{OF_FP32}"] = (narrowed.picture, "the fp32 graphs, same seed")
            for tensor, (expected, other) in compared.items():
                value = psnr_db(image, expected, peak=1.0)
                figures.append(
                    schema.Figure(tensor=tensor, measure="psnr_db", value=value, bound=bounds.psnr_db, against=other)
                )
    check_figures(figures + phases)
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
        phases=tuple(phases),
        unverified=checked.reach.unverified(),
    )
    return Verified(parity, references)


def _l2(tensor: str, actual: np.ndarray, expected: np.ndarray, bound: float, against: str) -> schema.Figure:
    value = relative_l2(actual, expected)
    return schema.Figure(tensor=tensor, measure="relative_l2", value=value, bound=bound, against=against)


def _trajectories(
    source: Source,
    step: FusedStep,
    table: SolverTable,
    request: ReferenceRequest,
    skipped: int | None,
    tokenizers: Mapping[str, memoryview],
) -> tuple[dict[str, Trajectory], dict[str, np.ndarray]]:
    """The parity request, and the one over an image if steps are `skipped`: as arrays, and as diffusers answers it."""
    drawn = parity_trajectory(step, table, tokenizers)
    trajectories, requests = {"image": drawn}, {"image": request}
    references = {"trajectory/noise": drawn.noise}
    if skipped is not None:
        over = parity_trajectory(step, table, tokenizers, skipped)
        assert over.init is not None, "a trajectory over an image holds the image"
        trajectories["over_image"] = over
        requests["over_image"] = over_image(request, parity_strength(step, table), over.init.pixels)
        references |= {
            "trajectory/over_image_noise": over.noise,
            "trajectory/over_image_encoder_noise": over.init.noise,
            "trajectory/over_image_pixels": over.init.pixels,
        }
    for name, asked in requests.items():
        image = source.family.reference_image(source.directory, table.solver.fresh(), asked, source.loras)
        references[f"trajectory/{name}"] = image.numpy()
    return trajectories, references


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


def components(narrowed: NarrowedStep, checked: Checked) -> dict[str, Component]:
    """Every graph of the bundle, in the order in which a request runs them."""
    step, parts = narrowed.hoisted.step, narrowed.hoisted.parts
    inputs = checked.drawn.inputs
    known = inputs["denoise"]
    found: dict[str, Component] = {}
    for encoder in step.model.text_encoders:
        outputs = {name: checked.drawn.encoded[name].numpy() for name in encoder.outputs}
        found[encoder.name] = Component(inputs[encoder.name], outputs, TORCH)
    hoisted = checked.handed_over
    before = "the graph before hoisting, on drawn inputs"
    if "prompt" in parts.graphs:
        found["prompt"] = Component(taken(narrowed.graphs["prompt"], known), hoisted["prompt"], before)
    if "schedule" in parts.graphs:
        assert parts.layout is not None, "a schedule graph comes with its layout"
        given = schedule_inputs(parts.layout, handed_over(known, {"prompt": hoisted.get("prompt", {})}))
        found["schedule"] = Component(given, hoisted["schedule"], before)
    known = handed_over(known, hoisted)
    prediction, *_ = _run_torch(step.denoise, inputs["denoise"])
    found["denoise"] = Component(taken(narrowed.graphs["denoise"], known), {"prediction": prediction}, TORCH)
    image, *_ = _run_torch(step.decode, inputs["decode"])
    found["decode"] = Component(inputs["decode"], {"image": image}, TORCH)
    if "encode" in narrowed.graphs:
        assert step.model.encoder is not None, "an encode graph was traced from the encoder"
        latents, *_ = _run_torch(step.model.encoder, inputs["encode"])
        found["encode"] = Component(inputs["encode"], {"latents": latents}, TORCH)
    return found


def _run_torch(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of a module that takes `inputs` in their order."""
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(value) for value in inputs.values()))
    return [value.numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]
