"""The parity gate: torch against the graphs that were written, piece by piece and as a whole.

Inputs are drawn from a stored seed, and what torch returns for them is kept in the bundle, so that
`latentc verify` can repeat the comparison on a device that has no torch. Prompt and schedule graphs
have no torch module of their own: they are held to the values that they replace in the graph before
hoisting, which itself is held to torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from latentc import schema
from latentc.backends import open_backend
from latentc.bundle import GraphBytes
from latentc.errors import ParityError
from latentc.parity import psnr_db, relative_l2
from latentc.request import Request, skipped_steps
from latentc.sampler import run_once, sample
from latentc.table import SolverTable as RuntimeTable
from latentc.trajectory import Trajectory, noise_from_seed, trajectory_of
from torch import nn

from export.compile import NarrowedStep
from export.examples import TEXTS, conditioning_example, encoded_texts, numpy_inputs, parity_size, token_inputs
from export.hoist import ROWS, SCHEDULE_ROW
from export.proof import hoisted_values, schedule_inputs
from export.solver_table import SolverTable
from export.source import Source
from export.step import FusedStep
from export.write import REFERENCES, conditioning_record, table_record
from models.latent_diffusion import LatentDiffusion, ReferenceRequest

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
        drawings["over_image"] = (over_image(request, step.model.default_strength, over.init.pixels), over)
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
        raise ParityError("; ".join(failed))


def step_inputs(step: FusedStep, encode: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of all modules, in the order of their parameters, by the graph's name: drawn from SEED."""
    model = step.model
    generator = torch.Generator().manual_seed(SEED)
    slots, shape, size = 3, (2, BATCH), parity_size(model)
    history = torch.randn(slots, BATCH, model.latent_shape[0], *size, generator=generator).numpy()
    row = np.array([0.6, -0.64, 0.48], np.float32)  # unit length: what the denoiser sees has unit variance
    scale = max(model.default_cfg_scale, 2.0)  # two branches, also of a model that is not guided by default
    conditioning = conditioning_example(model, shape, size, encoded_texts(model, len(TEXTS)), SEED)
    inputs = {encoder.name: numpy_inputs(token_inputs(encoder, TEXTS)) for encoder in model.text_encoders}
    inputs["denoise"] = {
        "history": history,
        "input_row": row,
        "timestep": np.full(shape, _TIMESTEP, np.float32),
        "guidance_weights": np.array([scale, 1.0 - scale], np.float32),
        **numpy_inputs(conditioning),
    }
    inputs["decode"] = {"history": history, "output_row": row}
    if encode:
        noise = torch.randn(1, model.latent_shape[0], *size, generator=generator).numpy()
        inputs["encode"] = {"image": picture(model, size), "noise": noise}
    return inputs


def picture(model: LatentDiffusion, size: tuple[int, int]) -> np.ndarray:
    """A smooth synthetic picture for latents of `size` (H, W): float32 [1, 3, height, width] in [0, 1]."""
    factor = model.image_shape[1] // model.latent_shape[1]
    rows, columns = np.mgrid[0 : factor * size[0], 0 : factor * size[1]].astype(np.float32) / (factor * max(size))
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns - 2 * rows), np.sin(11 * rows * columns)]
    return np.stack([0.5 + 0.4 * wave for wave in waves])[None].astype(np.float32)


def phase_inputs(step: FusedStep, encode: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """As step_inputs, with the mean of the guidance branches in place of guidance.

    (4, -3) multiplies the rounding of a branch by five: between two correct float32 graphs of the shipped
    model that is 1.0e-6 against 2.9e-7 of the mean. A phase is held to what it does to the denoiser.
    """
    inputs = step_inputs(step, encode)
    branches = len(inputs["denoise"]["guidance_weights"])
    inputs["denoise"]["guidance_weights"] = np.full(branches, 1 / branches, np.float32)
    return inputs


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


def parity_request(step: FusedStep, table: SolverTable) -> ReferenceRequest:
    """Two labels or prompts, the default guidance, the fixed seed, the size of the comparison."""
    model = step.model
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    if model.labels is not None:
        labels = tuple(sorted(set(model.labels.numbers.values())))[:BATCH]
    else:
        prompts = (TEXTS[0], TEXTS[3])
    factor = model.image_shape[1] // model.latent_shape[1]
    height, width = parity_size(model)
    return ReferenceRequest(
        seed=SEED,
        steps=table.steps,
        cfg_scale=model.default_cfg_scale,
        labels=labels,
        prompts=prompts,
        guidance=model.default_guidance,
        height=factor * height,
        width=factor * width,
    )


def over_image(request: ReferenceRequest, strength: float, pixels: np.ndarray) -> ReferenceRequest:
    """The same request over an image, float32 [1, 3, height, width]."""
    return replace(request, init_image=np.ascontiguousarray(pixels[0].transpose(1, 2, 0)), strength=strength)


def parity_skipped(step: FusedStep, table: SolverTable) -> int:
    """The steps that the image stands for at the family's own strength, as the runtime counts them."""
    return skipped_steps(table.steps, step.model.default_strength, step.model.strength_rounds_up)


def parity_trajectory(
    step: FusedStep, table: SolverTable, tokenizers: Mapping[str, memoryview], skipped: int | None = None
) -> Trajectory:
    """The arrays of `parity_request`, as the runtime makes them; with `skipped`, over the synthetic picture."""
    model, asked = step.model, parity_request(step, table)
    assert asked.width, "the parity request has a size"
    assert asked.height, "the parity request has a size"
    probed = table if skipped is None else table.over_image[skipped]
    request = Request(
        table=table_record(table, ""),
        cfg_scale=asked.cfg_scale,
        width=asked.width,
        height=asked.height,
        labels=asked.labels,
        prompts=asked.prompts,
        guidance=asked.guidance,
        skipped=skipped,
    )
    size = parity_size(model)
    shape = (request.count, model.latent_shape[0], *size)
    noise = noise_from_seed(SEED, shape, probed.noise_draws, encodes=skipped is not None)
    pixels = None if skipped is None else picture(model, size)
    multiple = model.sizes.multiple if model.sizes is not None else 1
    return trajectory_of(
        conditioning_record(model), multiple, request, runtime_table(probed), noise, tokenizers, pixels
    )


def parity_table(step: FusedStep, tables: tuple[SolverTable, ...]) -> SolverTable:
    """The default solver with the fewest calls, at the size of the comparison: the least cost for a large model."""
    size = parity_size(step.model)
    own = (t for t in tables if t.solver.name == tables[0].solver.name and t.schedule.size in (None, size))
    return min(own, key=lambda t: t.calls)


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
