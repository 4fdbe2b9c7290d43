"""A family's step as the compiler traces, cleans and cuts it, for the tests of its modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from export.compile import typical_dims
from export.examples import TEXTS, conditioning_example, encoded_texts
from export.hoist import CostModel, InputClass, Partition, partition
from export.passes import clean_graph
from export.step import FusedStep, fuse_step
from export.trace import trace_denoise
from models.latent_diffusion import LatentDiffusion
from tests.models.tracing import check_operators

LOOP_INPUTS, SCHEDULE_INPUTS = ("history", "input_row"), ("timestep",)
STEPS = 20


@dataclass(frozen=True)
class TracedFamily:
    """The fused step of a family, in torch and as a clean graph."""

    step: FusedStep
    graph: ir.Model
    texts: Mapping[str, Tensor]  # what the text encoders give for some prompts: name -> [texts, …]

    def inputs(self, branches: int, batch: int, grid: tuple[int, int], seed: int) -> dict[str, Tensor]:
        """Random inputs of the step for latents of grid · multiple pixels."""
        model = self.step.model
        generator = torch.Generator().manual_seed(seed)
        height, width = (model.sizes.multiple * count for count in grid)
        timestep = torch.full((branches, batch), 100.0 + 50.0 * seed)
        return {
            "history": torch.randn(4, batch, model.latent_shape[0], height, width, generator=generator),
            "input_row": torch.randn(4, generator=generator),
            "timestep": timestep,
            "guidance_weights": torch.randn(branches, generator=generator),
            **conditioning_example(model, (branches, batch), (height, width), self.texts, seed),
        }


def traced_family(model: LatentDiffusion) -> TracedFamily:
    """Traces with symbolic sizes, cleans, and looks for operators that TensorRT cannot take."""
    step = fuse_step(model)
    texts: dict[str, Tensor] = {}
    for encoder in model.text_encoders:
        texts |= encoded_texts(encoder, TEXTS[:3])
    graph = clean_graph(trace_denoise(step, texts), "onnxruntime")
    check_operators(graph)
    return TracedFamily(step, graph, texts)


def session(graph: ir.Model) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function of named tensors that runs the graph in ONNX Runtime and gives its first output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    runner = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), options)

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.from_numpy(runner.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return run


def hoisted(traced: TracedFamily, flops_per_byte: float) -> Partition:
    """The step cut for one guided image of the default size and 20 steps."""
    classes = {
        value.name: InputClass.LOOP
        if value.name in LOOP_INPUTS
        else InputClass.SCHEDULE
        if value.name in SCHEDULE_INPUTS
        else InputClass.PROMPT
        for value in traced.graph.graph.inputs
    }
    cost_model = CostModel(dims=typical_dims(traced.step, STEPS), steps=STEPS, flops_per_byte=flops_per_byte)
    return partition(traced.graph, classes, cost_model)


def weights_of(graph: ir.Model) -> set[str]:
    """Names of the module's parameters and buffers that the graph reads."""
    return {name for name in graph.graph.initializers if name.startswith("denoiser.")}
