"""Traces a fused step into ONNX graphs with symbolic slots, guidance branches and batch.

The trace is torch.onnx.export's (torch.export underneath); what is added here are the names, the
dynamic dimensions, and quiet.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.step import FusedStep

OPSET = 18
_EXAMPLE_SLOTS, _EXAMPLE_BRANCHES, _EXAMPLE_BATCH = 3, 2, 5  # different, so that no two are taken for one


@dataclass(frozen=True)
class TracedStep:
    """The graphs of a pipeline by their names in the bundle."""

    step: FusedStep
    graphs: Mapping[str, ir.Model]


def trace_step(step: FusedStep) -> TracedStep:
    """Graphs `denoise` and `decode`; docs/bundle-format.md gives their inputs and outputs."""
    generator = torch.Generator().manual_seed(0)
    slots, branches, batch = Dim("slots"), Dim("guidance_branches"), Dim("batch")
    history = torch.randn(_EXAMPLE_SLOTS, _EXAMPLE_BATCH, *step.model.latent_shape, generator=generator)
    row = torch.randn(_EXAMPLE_SLOTS, generator=generator)
    timestep = torch.full((_EXAMPLE_BRANCHES, _EXAMPLE_BATCH), 500.0)
    guidance_weights = torch.tensor([4.0, -3.0])
    conditioning = {c.name: c.example(_EXAMPLE_BRANCHES, _EXAMPLE_BATCH, generator) for c in step.model.conditioning}
    denoise = trace_module(
        step.denoise,
        inputs={
            "history": (history, {0: slots, 1: batch}),
            "input_row": (row, {0: slots}),
            "timestep": (timestep, {0: branches, 1: batch}),
            "guidance_weights": (guidance_weights, {0: branches}),
            **{name: (value, {0: branches, 1: batch}) for name, value in conditioning.items()},
        },
        output="prediction",
    )
    decode = trace_module(
        step.decode,
        inputs={"history": (history, {0: slots, 1: batch}), "output_row": (row, {0: slots})},
        output="image",
    )
    return TracedStep(step, {"denoise": denoise, "decode": decode})


def trace_module(module: nn.Module, inputs: Mapping[str, tuple[Tensor, dict[int, Dim]]], output: str) -> ir.Model:
    """One module as an ONNX graph of opset 18; `inputs` gives, in order, name -> (example, dynamic dims)."""
    # forward(*conditioning) is one variadic parameter: torch.export wants its dims as one nested tuple.
    dims = [dynamic for _, dynamic in inputs.values()]
    positional = _positional_parameters(module)
    nested = (*dims[:positional], tuple(dims[positional:])) if len(dims) > positional else tuple(dims)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=nested,
            verbose=False,
            # torch's own optimiser folds Transpose(weight) into a new tensor without the weight's name;
            # clean_graph folds it lazily and keeps the name.
            optimize=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    model: ir.Model = program.model
    model.graph.name = output
    return model


def _positional_parameters(module: nn.Module) -> int:
    code = type(module).forward.__code__
    return code.co_argcount - 1  # without self, and without *conditioning


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the exporter prints of its own inner workings; errors are raised as ever."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
