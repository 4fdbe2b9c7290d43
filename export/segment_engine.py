"""A written graph as an engine of the runtime that never holds more than a segment of its weights.

The export's own check runs large graphs so: the loop, the prologue and the decoder are the runtime's, and bind and run
this engine as any other.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from latentc.backends.host import HostBuffer
from latentc.backends.protocol import Buffer

from export.runner import Runner


class SegmentEngine:
    """graphs/NAME.onnx of a bundle, run segment by segment, node by node as it is written."""

    def __init__(self, path: Path) -> None:
        model = ir.load(path)
        self._outputs = {value.name or "" for value in model.graph.outputs}
        self._runner = Runner(model)
        self._bound: dict[str, HostBuffer] = {}

    def bind(self, name: str, buffer: Buffer) -> None:
        """As latentc.backends.protocol says."""
        assert isinstance(buffer, HostBuffer), "the CPU's own buffers"
        self._bound[name] = buffer

    def run(self) -> None:
        """Reads the bound inputs, and writes the bound outputs."""
        inputs = {name: buffer.array for name, buffer in self._bound.items() if name not in self._outputs}
        for name, values in self._runner.run(inputs).items():
            np.copyto(self._bound[name].array, values, casting="no")

    def close(self) -> None:
        """Lets go of buffers and weights."""
        self._bound.clear()
        self._runner.close()
