"""What happens to the traced graphs before they are written: clean, hoist, narrow, fuse, check.

Each phase takes the graphs of the phase before it, gives new ones, and is proven: both are run on the
same inputs, and how far apart they are is a figure of the parity report (export/proof.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from latentc.errors import LatentcError
from latentc.schema import Figure, Precision

from export.hoist import CostModel, InputClass, Layout, Partition, partition
from export.int8 import Int8Report
from export.passes.divide_by_root import DivideByRoot
from export.passes.fuse_attention import FuseAttention
from export.passes.pipeline import clean_graph
from export.precision import HalfReport, Island, Measured, half_of_measured, measured, prepare
from export.proof import Parts, compare_phase, run_parts
from export.reach import Reach
from export.runner import run_model
from export.step import FusedStep
from export.step_cache.split import Split, split_step
from export.targets import Target, check_target
from export.trace import TracedStep

PHASE_BOUND = 1e-6  # relative L2 of a phase that changes no arithmetic, float32
Recall = Callable[[str, Callable[[], Measured]], Measured]
LOOP_INPUTS = ("history", "input_row")
SCHEDULE_INPUTS = ("timestep",)
CACHED = "denoise_cached"


@dataclass(frozen=True)
class HoistedStep:
    """The step as parts: `prompt` and `schedule` where something could leave the loop, and `denoise`."""

    step: FusedStep
    whole: ir.Model  # the denoise graph before anything left it
    parts: Parts
    around: Mapping[str, ir.Model]  # what runs before and after the loop: text encoders, decode, encode
    partition: Partition | None  # what was cut where, and why
    figures: tuple[Figure, ...]
    outputs: Mapping[str, np.ndarray] | None = None  # of `whole` for the phases' inputs, where it was run

    @property
    def graphs(self) -> dict[str, ir.Model]:
        """The graphs by their names in the bundle, in the order in which a request runs them."""
        texts = [encoder.name for encoder in self.step.model.text_encoders]
        before = {name: self.around[name] for name in texts}
        return {**before, **self.parts.graphs, **{k: v for k, v in self.around.items() if k not in before}}

    @property
    def layout(self) -> Layout | None:
        """How the parts feed each other; None if nothing was hoisted."""
        return self.parts.layout


def clean_graphs(
    traced: TracedStep, target: Target, inputs: Mapping[str, Mapping[str, np.ndarray]], reach: Reach
) -> HoistedStep:
    """Folds, removes and rewrites for `target`; the graphs that were given are left alone."""
    figures = []
    cleaned, outputs = {}, {}
    for name, before in traced.graphs.items():
        cleaned[name] = clean_graph(before.clone(), target)
        if reach.is_beyond(name):
            continue
        expected = run_model(before, inputs[name])
        outputs[name] = run_model(cleaned[name], inputs[name])
        figures += compare_phase("clean", name, outputs[name], expected, PHASE_BOUND)
    return HoistedStep(
        step=traced.step,
        whole=cleaned["denoise"],
        parts=Parts({"denoise": cleaned["denoise"]}, None),
        around={name: graph for name, graph in cleaned.items() if name != "denoise"},
        partition=None,
        figures=tuple(figures),
        outputs=outputs.get("denoise"),
    )


def typical_dims(step: FusedStep, steps: int) -> dict[str, int]:
    """Sizes of the symbolic dims in one request: one guided image of the default size."""
    model = step.model
    _, height, width = model.latent_shape
    multiple = model.sizes.multiple if model.sizes is not None else 1
    grid = {"grid_height": height // multiple, "grid_width": width // multiple}
    return {"slots": 1 + steps, "batch": 1, "guidance_branches": 2, **(grid if model.sizes is not None else {})}


def hoist(
    clean: HoistedStep, steps: int, inputs: Mapping[str, np.ndarray], flops_per_byte: float, reach: Reach
) -> HoistedStep:
    """Splits the step into what runs once a request and what runs every step (export/hoist).

    `inputs` are those that `clean` was compared on.
    """
    classes = {
        value.name or "": InputClass.LOOP
        if value.name in LOOP_INPUTS
        else InputClass.SCHEDULE
        if value.name in SCHEDULE_INPUTS
        else InputClass.PROMPT
        for value in clean.whole.graph.inputs
    }
    cost_model = CostModel(dims=typical_dims(clean.step, steps), steps=steps, flops_per_byte=flops_per_byte)
    result = partition(clean.whole, classes, cost_model, check_rows=not reach.is_beyond("denoise"))
    named = {"prompt": result.prompt, "schedule": result.schedule, "denoise": result.denoise}
    parts = Parts({name: graph for name, graph in named.items() if graph is not None}, result.layout)
    figures = list(clean.figures)
    if clean.outputs is not None:
        figures += compare_phase("hoist", "denoise", run_parts(parts, inputs), clean.outputs, PHASE_BOUND)
    return HoistedStep(clean.step, clean.whole, parts, clean.around, result, tuple(figures))


@dataclass(frozen=True)
class NarrowedStep:
    """The graphs as they are written, and what half precision did to each, or int8 to the loop's."""

    hoisted: HoistedStep
    graphs: Mapping[str, ir.Model]
    half: Mapping[str, HalfReport]
    void_islands: tuple[str, ...] = ()  # patterns of the family that hold no node of any graph
    wide_outputs: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)  # in float32, of the last sample
    split: Split | None = None  # of the denoise graph, where steps may be cached
    int8: Int8Report | None = None
    picture: np.ndarray | None = None  # of the whole trajectory in float32, where int8 is compared with it

    @property
    def shared_weights(self) -> dict[str, str]:
        """The graphs whose weights all lie in another graph's file."""
        return {} if self.split is None else {CACHED: "denoise"}

    @property
    def narrow_graphs(self) -> frozenset[str]:
        """The graphs that are not in float32."""
        if self.int8 is None:
            return frozenset(self.half)
        decoder = self.int8.decoder
        narrow = {"denoise", *self.shared_weights}
        return frozenset(narrow | {"decode"} if decoder is not None and decoder.num_int8 else narrow)


def no_recall(name: str, measure: Callable[[], Measured]) -> Measured:
    """Measures."""
    return measure()


def narrow(
    hoisted: HoistedStep,
    precision: Precision,
    calibration: Mapping[str, Sequence[Mapping[str, np.ndarray]]],
    recall: Recall = no_recall,
) -> NarrowedStep:
    """Writes half precision into the graphs that are calibrated; prompt and schedule graph stay float32.

    What calibration measured is asked of `recall` by the graph's name, which measures it or knows it already.
    """
    if precision == "fp32":
        return NarrowedStep(hoisted, hoisted.graphs, {})
    graphs = dict(hoisted.graphs)
    islands = [Island(known.pattern, known.reason) for known in hoisted.step.model.overflows]
    reports, wide = {}, {}
    for name, samples in calibration.items():
        graph = graphs[name].clone()
        # A family's island may have left the loop; to_half takes one that holds for no node as a mistake.
        held = [island for island in islands if any(island.holds(node) for node in graph.graph)]
        prepare(graph)
        found = recall(name, partial(measured, graph, samples))
        result = half_of_measured(graph, found, held)
        graphs[name], reports[name], wide[name] = result.model, result.report, found.outputs
    everywhere = [node for graph in hoisted.graphs.values() for node in graph.graph]
    void = tuple(island.pattern for island in islands if not any(island.holds(node) for node in everywhere))
    return NarrowedStep(hoisted, graphs, reports, void, wide)


def with_cached_step(narrowed: NarrowedStep) -> NarrowedStep:
    """`denoise` returns what its middle blocks add, and a graph `denoise_cached` takes it in their place."""
    split = split_step(narrowed.graphs["denoise"], narrowed.hoisted.step.model.blocks)
    graphs: dict[str, ir.Model] = {}
    for name, graph in narrowed.graphs.items():
        graphs |= {"denoise": split.full, CACHED: split.cached} if name == "denoise" else {name: graph}
    return replace(narrowed, graphs=graphs, split=split)


def fuse(narrowed: NarrowedStep, target: Target, precision: Precision) -> NarrowedStep:
    """Brings the graphs into the forms that the target runs fastest, and that no phase before this one knows.

    Nothing for TensorRT, which finds its own, nor in half precision, where ONNX Runtime's CPU has no such operators.
    """
    if target != "onnxruntime" or precision == "fp16":
        return narrowed
    passes = ir.passes.Sequential(DivideByRoot(), FuseAttention())
    return replace(narrowed, graphs={name: passes(graph.clone()).model for name, graph in narrowed.graphs.items()})


def check_graphs(narrowed: NarrowedStep, target: Target) -> None:
    """Raises LatentcError with every operator, dtype or limit that the target's parser does not take."""
    findings = [f"{name}: {f}" for name, graph in narrowed.graphs.items() for f in check_target(graph, target)]
    if findings:
        more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
        raise LatentcError(f"{target} does not take these graphs: {'; '.join(findings[:3])}{more}")
