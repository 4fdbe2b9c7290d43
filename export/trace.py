"""Traces a pipeline's modules into ONNX graphs with symbolic slots, guidance branches, batch, and size.

The trace is torch.export's, written as ONNX by torch.onnx.export; what is added here are the names, the
dynamic dimensions, and quiet.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.examples import TEXTS, conditioning_example, token_inputs
from export.step import GRIDS, FusedStep
from models.latent_diffusion import LatentDiffusion, TextEncoder
from models.stored_weights import StoredWeight, stored_parameters

OPSET = 18
# Different from one another and from common widths, so that no two are taken for one.
_EXAMPLE_SLOTS, _EXAMPLE_BRANCHES, _EXAMPLE_BATCH, _EXAMPLE_TEXTS = 3, 2, 5, 2
_EXAMPLE_GRID = (6, 4)  # rows, columns, where the size is symbolic

Dims = dict[int, Dim]


@dataclass(frozen=True)
class TracedStep:
    """The graphs of a pipeline by their names in the bundle, in the order in which a request runs them."""

    step: FusedStep
    graphs: Mapping[str, ir.Model]


def trace_step(step: FusedStep, encode: bool = False) -> TracedStep:
    """Graphs of the text encoders, `denoise`, `decode`, and `encode` if it is asked for.

    docs/bundle-format.md gives their inputs and outputs.
    """
    model = step.model
    graphs = {encoder.name: trace_text_encoder(encoder) for encoder in model.text_encoders}
    generator = torch.Generator().manual_seed(0)
    # What the encoders return has a shape, and that is all that a trace asks: no text is encoded for it.
    texts = {
        value.name or "": torch.randn(_text_shape(encoder, value), generator=generator)
        for encoder in model.text_encoders
        for value in graphs[encoder.name].graph.outputs
    }
    graphs["denoise"] = trace_denoise(step, texts)
    size, dims = _sizes(model, axis=3)
    slots, batch = Dim("slots"), Dim("batch")
    history = torch.randn(_EXAMPLE_SLOTS, _EXAMPLE_BATCH, model.latent_shape[0], *size, generator=generator)
    row = torch.randn(_EXAMPLE_SLOTS, generator=generator)
    graphs["decode"] = trace_module(
        step.decode,
        inputs={"history": (history, {0: slots, 1: batch} | dims), "output_row": (row, {0: slots})},
        outputs=("image",),
    )
    if encode:
        assert model.encoder is not None, "only a family with an encoder is asked for one"
        factor = model.image_shape[1] // model.latent_shape[1]
        (height, width), latent_dims = _sizes(model, axis=2)
        pixels = torch.rand(_EXAMPLE_BATCH, model.image_shape[0], factor * height, factor * width, generator=generator)
        noise = torch.randn(_EXAMPLE_BATCH, model.latent_shape[0], height, width, generator=generator)
        pixel_dims = {axis: factor * dim for axis, dim in latent_dims.items()}
        graphs["encode"] = trace_module(
            model.encoder,
            inputs={"image": (pixels, {0: batch} | pixel_dims), "noise": (noise, {0: batch} | latent_dims)},
            outputs=("latents",),
        )
    return TracedStep(step, graphs)


def trace_denoise(step: FusedStep, texts: Mapping[str, Tensor]) -> ir.Model:
    """The graph of one step of the loop; `texts` [texts, …] stands in for what the text encoders return."""
    model = step.model
    generator = torch.Generator().manual_seed(0)
    slots, branches, batch = Dim("slots"), Dim("guidance_branches"), Dim("batch")
    size, dims = _sizes(model, axis=3)
    history = torch.randn(_EXAMPLE_SLOTS, _EXAMPLE_BATCH, model.latent_shape[0], *size, generator=generator)
    shape = (_EXAMPLE_BRANCHES, _EXAMPLE_BATCH)
    conditioning = conditioning_example(model, shape, size, texts, seed=0)
    grid_dims = dict(zip(GRIDS, _grid_dims(model), strict=True)) if model.sizes is not None else {}
    conditioning_dims: dict[str, Dims] = {
        name: {0: branches, 1: batch} if name not in GRIDS else {0: grid_dims[name]} if grid_dims else {}
        for name in conditioning
    }
    return trace_module(
        step.denoise,
        inputs={
            "history": (history, {0: slots, 1: batch} | dims),
            "input_row": (torch.randn(_EXAMPLE_SLOTS, generator=generator), {0: slots}),
            "timestep": (torch.full(shape, 500.0), {0: branches, 1: batch}),
            "guidance_weights": (torch.tensor([4.0, -3.0]), {0: branches}),
            **{name: (value, conditioning_dims[name]) for name, value in conditioning.items()},
        },
        outputs=("prediction",),
    )


def trace_text_encoder(encoder: TextEncoder) -> ir.Model:
    """The graph of one text encoder; its number of tokens is fixed where prompts of all kinds have the same."""
    least = min(encoder.prompt.length, encoder.negative.length)
    dims: Dims = {0: Dim("texts")} | ({1: Dim("tokens", min=least)} if encoder.symbolic_length else {})
    inputs = token_inputs(encoder, TEXTS[:_EXAMPLE_TEXTS])
    return trace_module(encoder.module, {name: (value, dims) for name, value in inputs.items()}, encoder.outputs)


def _text_shape(encoder: TextEncoder, output: ir.Value) -> list[int]:
    """The shape of an encoder's output for the example's texts, at the length of a prompt."""
    assert output.shape is not None, f"{output.name} was traced without a shape"
    return [_EXAMPLE_TEXTS, *(dim if isinstance(dim, int) else encoder.prompt.length for dim in output.shape.dims[1:])]


def _grid_dims(model: LatentDiffusion) -> tuple[Dim, Dim]:
    assert model.sizes is not None, "only a symbolic size has a grid"
    most = model.sizes.maximum // model.sizes.multiple
    return Dim("grid_height", min=2, max=most), Dim("grid_width", min=2, max=most)


def _sizes(model: LatentDiffusion, axis: int) -> tuple[tuple[int, int], Dims]:
    """Height and width of example latents, and their dynamic dims where height is `axis`."""
    if model.sizes is None:
        return (model.latent_shape[1], model.latent_shape[2]), {}
    multiple = model.sizes.multiple
    height, width = _grid_dims(model)
    rows, columns = (min(count, model.sizes.maximum // multiple) for count in _EXAMPLE_GRID)
    return (multiple * rows, multiple * columns), {axis: multiple * height, axis + 1: multiple * width}


def trace_module(module: nn.Module, inputs: Mapping[str, tuple[Tensor, Dims]], outputs: tuple[str, ...]) -> ir.Model:
    """One module as an ONNX graph of opset 18; `inputs` gives, in order, name -> (example, dynamic dims)."""
    # forward(*conditioning) is one variadic parameter: torch.export wants its dims as one nested tuple.
    dims = [dynamic for _, dynamic in inputs.values()]
    positional = _positional_parameters(module, len(inputs))
    nested = (*dims[:positional], tuple(dims[positional:])) if len(dims) > positional else tuple(dims)
    with _quiet():
        # torch.export first: torch.onnx.export alone turns named dims into independent ones, and PixArt's
        # caption.view(batch, -1, width) then has an unknown length (torch 2.13).
        exported = torch.export.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            dynamic_shapes=nested,
            strict=False,
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
            # torch's own optimiser folds Transpose(weight) into a new tensor without the weight's name;
            # clean_graph folds it lazily and keeps the name.
            optimize=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    model: ir.Model = program.model
    model.graph.name = outputs[0]
    leave_weights_in_files(model, module)
    _name_dims(model, {name: dynamic for name, (_, dynamic) in inputs.items()})
    return model


def leave_weights_in_files(model: ir.Model, module: nn.Module) -> None:
    """Gives every weight that the traced `module` left in its file a tensor that is read when it is used."""
    stored = {name: (parameter, weight) for name, parameter, weight in stored_parameters(module)}
    if not stored:
        return
    places = {parameter.data_ptr() for parameter, _ in stored.values()}
    for name, value in model.graph.initializers.items():
        if name in stored:
            parameter, weight = stored[name]
            value.const_value = stored_tensor(name, weight)
            assert tuple(value.const_value.shape.numpy()) == tuple(parameter.shape), (
                f"{name} was traced in another shape"
            )
        else:
            held = getattr(value.const_value, "raw", None)
            assert not (isinstance(held, Tensor) and held.data_ptr() in places), f"{name} is a stand-in without a name"


def stored_tensor(name: str, weight: StoredWeight) -> ir.LazyTensor:
    """`weight` as a float32 tensor of a graph."""

    def read() -> ir.TensorProtocol:
        return ir.Tensor(weight.read().numpy(), name=name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(weight.shape), name=name)


def _positional_parameters(module: nn.Module, given: int) -> int:
    code = type(module).forward.__code__
    variadic = bool(code.co_flags & 0x04)  # CO_VARARGS
    return code.co_argcount - 1 if variadic else given  # without self, and without *conditioning


_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _name_dims(model: ir.Model, wanted: Mapping[str, Dims]) -> None:
    """Gives dims the names that they were declared by: torch.export calls them s53 and the like, after a guard."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in wanted[value.name or ""].items():
            assert value.shape is not None, f"{value.name} was traced without a shape"
            found, declared = _SYMBOL.findall(str(value.shape[axis])), _SYMBOL.findall(dim.__name__)
            assert len(found) == len(declared) == 1, f"{value.name}[{axis}] was traced as {value.shape[axis]}"
            names[found[0]] = declared[0]
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else _renamed(dim, names) for dim in value.shape.dims])


def _renamed(dim: ir.SymbolicDim, names: Mapping[str, str]) -> str | None:
    return None if dim.value is None else _SYMBOL.sub(lambda match: names.get(match[0], match[0]), dim.value)


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
