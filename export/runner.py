"""Runs a graph in ONNX Runtime, node by node as it is written, with at most a segment of its weights in memory."""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from export.segments import SEGMENT_BYTES, OnWeight, OpenSegment, Segment, complete_types, segments_of


class Runner(contextlib.AbstractContextManager["Runner"]):
    """A graph in ONNX Runtime, for as many runs as are wanted: whole, or segment by segment where it is large."""

    def __init__(self, model: ir.Model, most_bytes: int = SEGMENT_BYTES, on_weight: OnWeight | None = None) -> None:
        self.inputs = [value.name or "" for value in model.graph.inputs]
        self._model = model
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self._segments = segments_of(model, most_bytes)
        complete_types(model, self._segments)
        self._on_weight = on_weight
        self._whole = OpenSegment(model, self._segments[0], on_weight) if len(self._segments) == 1 else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name; `inputs` may hold more than the graph takes."""
        (outputs,) = self.run_all([inputs])
        return outputs

    def run_all(self, samples: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The outputs for each of `samples`; weights are read once for all of them."""
        known = [dict(sample) for sample in samples]
        for index, segment in enumerate(self._segments):
            opened = self._whole or OpenSegment(self._model, segment, self._on_weight)
            for values in known:
                values |= opened.run(values)
                _drop(values, self._segments[index + 1 :], self._outputs)
        return [{name: values[name] for name in self._outputs} for values in known]

    def close(self) -> None:
        """Lets go of the weights."""
        self._whole = None

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop(values: dict[str, np.ndarray], ahead: Sequence[Segment], outputs: Sequence[str]) -> None:
    """Lets go of what no segment ahead reads."""
    wanted = {value.name for segment in ahead for value in segment.inputs} | set(outputs)
    for name in values.keys() - wanted:
        del values[name]


def run_model(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of `model` by name; `inputs` may hold more than the graph takes."""
    with Runner(model) as runner:
        return runner.run(inputs)
