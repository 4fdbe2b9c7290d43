"""What each convolution of a decoder does to the picture when it alone is int8, and what the choice goes by (ADR 0022).

    python -m export CHECKPOINT --output build/b
    python -m benchmarks.eight_bit_decoder build/b

Latents are noise from a fixed seed, calibration is on the same. A row for each wide convolution: the error of its own
output, what its sum carries of it (export/int8/convolutions.py), and the PSNR of the picture. Prints JSON; nothing is
timed. 33 convolutions of the usual autoencoder at 256² take two minutes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from latentc.bundle import open_bundle
from latentc.parity import psnr_db

from benchmarks.machine import machine
from export.int8.convolutions import convolutions_of, errors_of_convolutions, watched_values
from export.int8.decoder import in_eight_bits
from export.int8.spans import spans_of
from export.runner import Runner


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    given = parser.parse_args(arguments)
    decode = ir.load(given.bundle / open_bundle(given.bundle).manifest.graphs["decode"].file)
    print(json.dumps({"machine": machine(), "convolutions": measured(decode, noise_for(decode))}, indent=1))


def noise_for(decode: ir.Model) -> dict[str, np.ndarray]:
    """Standard normal inputs of one picture at 32×32 latents, where the graph leaves the size open."""
    rng = np.random.default_rng(0)
    open_dims = {"latent_height": 32, "latent_width": 32}
    shapes = {
        value.name or "": [dim if isinstance(dim, int) else open_dims.get(str(dim), 1) for dim in value.shape or ()]
        for value in decode.graph.inputs
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def measured(decode: ir.Model, sample: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each convolution, and a last one for all of them."""
    convolutions = convolutions_of(decode.graph)
    spans = spans_of(decode, watched_values(convolutions), [sample])
    errors = errors_of_convolutions(decode, spans, [sample])
    with Runner(decode) as runner:
        whole = runner.run(sample)["image"]

    def psnr_with(chosen: set[str]) -> float:
        with Runner(in_eight_bits(decode, spans, errors.keys() - chosen)) as runner:
            return round(psnr_db(runner.run(sample)["image"], whole), 1)

    rows: list[dict[str, Any]] = []
    for node in convolutions:
        name, weight = node.name or "", node.inputs[1]
        assert weight is not None, "a wide convolution has a weight"
        assert weight.shape is not None, "which is an initializer"
        rows.append({
            "name": name,
            "weight": list(weight.shape.numpy()),
            "own": round(errors[name].own, 4),
            "carried": round(errors[name].carried, 4),
            "psnr_db": psnr_with({name}),
        })  # fmt: skip
    return [*rows, {"name": "all of them", "psnr_db": psnr_with(set(errors))}]


if __name__ == "__main__":
    main()
