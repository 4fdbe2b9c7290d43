"""A module as an ONNX Runtime session, traced with symbolic sizes as the compiler traces it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from export.passes import clean_graph
from export.trace import leave_weights_in_files

Inputs = Mapping[str, tuple[Tensor, dict]]  # name -> (example, axis -> torch.export.Dim)


def graph_from_module(module: nn.Module, inputs: Inputs) -> ir.Model:
    """The graph as torch gives it; forward's parameters are positional, variadic ones last."""
    examples = tuple(example for example, _ in inputs.values())
    dims = [dims for _, dims in inputs.values()]
    fixed = type(module).forward.__code__.co_argcount - 1  # without self, and without *conditioning
    nested = (*dims[:fixed], tuple(dims[fixed:])) if len(dims) > fixed else tuple(dims)
    with quiet():
        program = torch.export.export(module.eval(), examples, dynamic_shapes=nested, strict=False)
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=18, input_names=list(inputs), verbose=False, optimize=False
        )
    assert exported is not None
    leave_weights_in_files(exported.model, module)
    return exported.model


def session_from_module(module: nn.Module, inputs: Inputs) -> Callable[..., Tensor]:
    """A function of the same tensors that runs the clean graph."""
    model = clean_graph(graph_from_module(module, inputs), "onnxruntime")
    check_operators(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)

    def run(*tensors: Tensor) -> Tensor:
        feed = dict(zip([value.name for value in session.get_inputs()], map(Tensor.numpy, tensors), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def check_operators(model: ir.Model) -> None:
    """A clean graph has nothing that TensorRT cannot take."""
    refused = {"If", "Loop", "Scan", "SplitToSequence", "SequenceAt", "NonZero"}
    for node in model.graph:
        assert node.op_type not in refused, f"{node.op_type} in the graph"
        for value in node.outputs:
            assert value.dtype is not ir.DataType.DOUBLE, f"{value.name} of {node.op_type} is float64"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back the exporter's notes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
