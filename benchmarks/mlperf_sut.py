"""latentc as MLPerf LoadGen's system under test: a queue, one worker, and as many pictures at once as are waiting.

A sample is a label or a prompt with a seed, and its picture is the one that `latentc sample -s SEED` draws: in a batch
each picture starts from its own seed's noise. The response is the picture's bytes, uint8 [height, width, 3].

Knows LoadGen by two names of its module, QuerySampleResponse and QuerySamplesComplete; a test gives another.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from latentc.errors import RequestError
from latentc.noise import NormalStream
from latentc.picture import quantise
from latentc.request import Asked, Request, resolve
from latentc.schema import LabelConditioning, Manifest
from latentc.session import Session, trajectory_of_request
from latentc.trajectory import latent_shape

Pixels = npt.NDArray[np.uint8]
FIRST_SEED = 1_000
PROMPTS = ("red heart", "blue car", "green apple", "yellow star", "cat face", "house", "sun", "pizza")


@dataclass(frozen=True)
class Item:
    """One sample of the library: `what` is a label's name or a prompt."""

    what: str
    seed: int


class QuerySample(Protocol):
    """What LoadGen asks: its own id of the query, and the sample's place in the library."""

    id: int
    index: int


def library(manifest: Manifest, count: int) -> list[Item]:
    """`count` samples: labels (or prompts) in turn, each with a seed of its own."""
    conditioning = manifest.conditioning
    names = tuple(conditioning.labels) if isinstance(conditioning, LabelConditioning) else PROMPTS
    return [Item(names[number % len(names)], FIRST_SEED + number) for number in range(count)]


def pictures_of(session: Session, items: Sequence[Item]) -> Pixels:
    """[N, height, width, 3] in one batch; RequestError for a solver that draws noise on its way."""
    manifest = session.bundle.manifest
    request = _request(manifest, items)
    if request.table.noise_draws:
        raise RequestError(f"solver {request.table.solver} draws noise for a whole batch; give a deterministic one")
    shape = (1, *latent_shape(manifest, request)[1:])
    first = np.concatenate([NormalStream(item.seed).draw(shape) for item in items])
    trajectory = trajectory_of_request(session.bundle, request, 0, first, tokenizers=session.tokenizers)
    return quantise(session.sampling(trajectory).draw())


def _request(manifest: Manifest, items: Sequence[Item]) -> Request:
    if not isinstance(manifest.conditioning, LabelConditioning):
        return resolve(manifest, Asked(prompts=[item.what for item in items]))
    numbers = tuple(manifest.conditioning.labels[item.what] for item in items)
    return replace(resolve(manifest, Asked(label=items[0].what)), labels=numbers)


class Sut:
    """Answers LoadGen from a thread of its own; `draw` makes the pictures of samples by their places.

    A draw that raises ends the run, not the machine's patience: it and all that follows are answered with nothing,
    and `close` raises what was raised.
    """

    def __init__(self, loadgen: Any, draw: Callable[[Sequence[int]], Pixels], most: int) -> None:
        self._loadgen, self._draw, self._most = loadgen, draw, most
        self._waiting: queue.SimpleQueue[QuerySample | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self.batches: list[int] = []  # how many pictures were drawn at once
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def issue(self, samples: Sequence[QuerySample]) -> None:
        """LoadGen's callback: returns at once."""
        for sample in samples:
            self._waiting.put(sample)

    def flush(self) -> None:
        """LoadGen's callback: nothing is held back, so nothing is to be done."""

    def close(self) -> None:
        """Ends the worker, when all that was asked is answered."""
        self._waiting.put(None)
        self._worker.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (sample := self._waiting.get()) is not None:
            batch, ended = [sample], False
            while len(batch) < self._most and not ended:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    ended = True
                else:
                    batch.append(following)
            self._answer(batch)
            if ended:
                return

    def _answer(self, batch: Sequence[QuerySample]) -> None:
        pictures: Sequence[Pixels] = [np.empty(0, np.uint8)] * len(batch)
        if self._failure is None:
            try:
                pictures = [np.ascontiguousarray(p) for p in self._draw([sample.index for sample in batch])]
                self.batches.append(len(batch))
            except Exception as error:
                self._failure = error
        respond = self._loadgen.QuerySampleResponse
        # LoadGen reads the memory before the call returns.
        self._loadgen.QuerySamplesComplete(
            [
                respond(sample.id, picture.ctypes.data if picture.size else 0, picture.nbytes)
                for sample, picture in zip(batch, pictures, strict=True)
            ]
        )
