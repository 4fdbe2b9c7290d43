"""A job's request as flags of `latentc sample`: for the worker, which parses them, and for whole processes."""

from collections.abc import Mapping
from typing import Any


def flags(job: Mapping[str, Any]) -> list[str]:
    """Everything but seed, batch and output."""
    request = job["request"]
    found = ["--backend", "onnxruntime", "--threads", str(job["threads"]), "--steps", str(request["steps"])]
    found += ["-p", request["prompt"]] if request["label"] is None else ["--label", str(request["label"])]
    if request["cfg_scale"] > 1:
        found += ["--cfg-scale", str(request["cfg_scale"])]
    if request["guidance"] is not None:
        found += ["--guidance", str(request["guidance"])]
    return [*found, *job["flags"]]
