"""The sessions of one graph in ONNX Runtime: one with a pool of threads for whole runs, one without for their parts.

ONNX Runtime fixes the number of threads when it makes a session, and every session has weights of its own, laid out
anew. So only the one that the bundle's default request takes is made at once, the other when a request asks for it; and
a graph with large weights never has both.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from threading import Lock

import onnxruntime

from latentc.backends.protocol import Array
from latentc.backends.row_parts import PartedRun, WholeRun, parts_of, rows_of
from latentc.bundle import GraphBytes

_BOTH_BYTES = 2**28  # of weights, up to which a graph may have both sessions


class Sessions:
    """`load` makes a session with so many threads; `parts` is how many the rows are shared out among, 1 for none."""

    def __init__(
        self,
        load: Callable[[int], onnxruntime.InferenceSession],
        graph: GraphBytes,
        threads: int,
        parts: int,
        workers: Executor,
    ) -> None:
        self._load, self._threads, self._workers = load, threads, workers
        self._parts = parts if graph.rows else 1
        self._both = len(graph.weights) <= _BOTH_BYTES
        self._lock = Lock()
        first = 1 if self._parts > 1 and graph.rows % parts == 0 else threads
        session = load(first)
        self._made = {first: session}
        self.dims = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}

    def run_for(self, arrays: Mapping[str, Array]) -> WholeRun | PartedRun:
        """How to run what is bound, for as long as it has these shapes."""
        rows = rows_of(self.dims, arrays) if self._parts > 1 else None
        parts = parts_of(rows, self._parts) if rows else []
        with self._lock:
            if rows and parts and (1 in self._made or self._both):
                return PartedRun(self._session(1), rows, parts, self._workers)
            if not self._both and self._threads not in self._made:
                self._made.clear()  # a request that has no parts; from here on all are run whole
            return WholeRun(self._session(self._threads))

    def _session(self, threads: int) -> onnxruntime.InferenceSession:
        if threads not in self._made:
            self._made[threads] = self._load(threads)
        return self._made[threads]
