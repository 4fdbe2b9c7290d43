"""Which share of each family's weights a graph takes as the source stores it: what a link or a clone could save.

    python -m benchmarks.linked_share [--only NAME …]      one line a model, JSON at the end; writes nothing

Taken as it lies is a parameter of the diffusers module that no pass has transposed, folded or fused; its dtype is
counted as right, so that for a source in another precision than its graph the true share is 0. Denoisers of the
published sizes without weights, as in benchmarks.family_sizes: counts are exact and no machine matters.
"""

import argparse
import json
import math
import sys
from collections.abc import Container, Sequence

import onnx_ir as ir
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.family_sizes import Published, cut, published, traced
from export.graph_files import INLINE_BYTES
from export.passes.pipeline import clean_graph

DENOISER = "denoiser."


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the shares of the models that were asked for."""
    models = {model.name: model for model in published()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linked_share")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(models), default=list(models))
    rows = {}
    for name in parser.parse_args(arguments).only:
        rows[name] = shares(models[name])
        print(name, rows[name], file=sys.stderr)
    print(json.dumps({"command": "python -m benchmarks.linked_share", "percent_as_it_lies": rows}))


def shares(model: Published) -> dict[str, float]:
    """Percent of the elements by graph; `whole` is the step before anything leaves the loop."""
    with FakeTensorMode():
        own = {f"{DENOISER}{name}": tuple(value.shape) for name, value in model.make().state_dict().items()}
    step, graph = traced(model)
    untouched = {
        id(value.const_value): value.const_value
        for name, value in graph.graph.initializers.items()
        if value.const_value is not None and tuple(value.const_value.shape.numpy()) == own.get(name)
    }
    clean = clean_graph(graph, "onnxruntime")
    parts = cut(step, clean)
    graphs = {"whole": clean, "prompt": parts.prompt, "schedule": parts.schedule, "denoise": parts.denoise}
    return {name: share(graph, untouched) for name, graph in graphs.items() if graph is not None}


def share(graph: ir.Model, untouched: Container[int]) -> float:
    """Percent of the elements that would lie in the weights' file, and are one of the `untouched` objects."""
    tensors = [value.const_value for value in graph.graph.initializers.values()]
    large = [tensor for tensor in tensors if tensor is not None and tensor.nbytes > INLINE_BYTES]
    sizes = {id(tensor): math.prod(tensor.shape.numpy()) for tensor in large}
    total = sum(sizes.values())
    return round(100 * sum(size for key, size in sizes.items() if key in untouched) / max(total, 1), 1)


if __name__ == "__main__":
    main()
