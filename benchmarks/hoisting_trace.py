"""A denoiser as a clean ONNX graph, with real random weights or with weights that have only a shape.

Without weights a model of any size is traced in the memory of its graph: torch's fake tensors have no storage, and the
graph's weights are lazy. What a pass reads of them (scalars, small tables) is then made up, once, from the name.
"""

import contextlib
import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # the class is public in torch's docs, its module is not

from benchmarks.hoisting_denoiser import Denoiser
from export.passes import clean_graph
from export.trace import OPSET


def graph_from_denoiser(denoiser: Denoiser, *, weights: bool, bfloat16: bool = False) -> ir.Model:
    """The clean graph for ONNX Runtime. `bfloat16` rounds every weight to bfloat16 first, and keeps float32."""
    torch.manual_seed(0)
    with contextlib.nullcontext() if weights else FakeTensorMode():
        net = denoiser.make().eval()
        if weights:
            spread_zeros(net)
        if bfloat16:
            round_to_bfloat16(net)
        model = _traced(net, denoiser)
    if not weights:
        make_weights_lazy(model)
    return clean_graph(model, "onnxruntime")


def spread_zeros(net: nn.Module) -> None:
    """Gates of adaLN-Zero and zero convolutions start at zero, and a zero hides every error."""
    draw = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.02


def round_to_bfloat16(net: nn.Module) -> None:
    """What a checkpoint that is stored in bfloat16 gives."""
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16().float()


def _traced(net: nn.Module, denoiser: Denoiser) -> ir.Model:
    with _quiet():
        # torch.export first: torch.onnx.export alone turns named dims into independent ones, and PixArt's
        # caption.view(batch, -1, width) then has an unknown length (torch 2.13).
        program = torch.export.export(
            net, (), kwargs=dict(denoiser.examples()), dynamic_shapes={k: dict(v) for k, v in denoiser.dynamic.items()},
            strict=False,
        )  # fmt: skip
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, optimize=False)
    assert exported is not None, "torch.onnx.export(dynamo=True) returns a program"
    model: ir.Model = exported.model
    names = {}
    for value in model.graph.inputs:  # torch.export names a shared dim after its first guard, such as s53
        for axis, dim in denoiser.dynamic[value.name or ""].items():
            assert value.shape is not None
            names[str(value.shape[axis])] = dim.__name__
    _rename_dims(model, names)
    _drop_void_squeezes(model)
    return model


def _rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Renames symbolic dims, within products too."""
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else _renamed(dim, names) for dim in value.shape.dims])


def _renamed(dim: ir.SymbolicDim, names: Mapping[str, str]) -> str | None:
    return None if dim.value is None else "*".join(names.get(factor, factor) for factor in dim.value.split("*"))


def _drop_void_squeezes(model: ir.Model) -> None:
    """torch 2.13 exports squeeze(1) of a dim that is not 1, which does nothing in torch, as an invalid Squeeze."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Squeeze" else None
        if source is not None and source.shape is not None and node.outputs[0].shape == source.shape:
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def make_weights_lazy(model: ir.Model) -> None:
    """Puts numbers that are made up when they are read in place of weights without storage."""
    for name, value in model.graph.initializers.items():
        fake = value.const_value
        assert fake is not None
        value.const_value = _made_up(name, fake.dtype, ir.Shape(fake.shape.numpy()))


def _made_up(name: str, dtype: ir.DataType, shape: ir.Shape) -> ir.LazyTensor:
    def numbers() -> ir.TensorProtocol:
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        return ir.tensor(generator.standard_normal(shape.numpy()).astype(dtype.numpy()), name=name)

    return ir.LazyTensor(numbers, dtype=dtype, shape=shape, name=name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the exporter's notes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
