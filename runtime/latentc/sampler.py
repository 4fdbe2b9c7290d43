"""The loop: one engine, called once for each row of the table, and then the decoder.

It knows no solver (the rows are the solver), no backend and no family. Nothing is computed or copied
on the host between two calls: the denoiser writes its output straight into the next slot of the
history.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from latentc.backends.protocol import Array, Backend, Buffer, Engine
from latentc.decoding import TiledDecoder, image_shape
from latentc.prologue import run_graph, run_prologue, uploaded
from latentc.prompt_cache import PromptCache
from latentc.schema import Graph, Manifest
from latentc.trajectory import InitialImage, Trajectory


class Sampling:
    """One request on its way through the engines.

    sampling = Sampling(backend, engines, manifest, trajectory)     # the prologue runs here
    for call in sampling.steps():
        ...                         # progress; or stop here
    picture = sampling.decode()     # float32 [B, 3, height, width] in [0, 1]

    or, without a look at the steps: picture = sampling.draw()

    Each stage's engine is asked for when its turn comes: `engines` may hold one at a time (latentc.stages).
    `prologue` is the backend of the engines that run before the loop, where it is not the loop's.
    """

    def __init__(
        self,
        backend: Backend,
        engines: Mapping[str, Engine],
        manifest: Manifest,
        trajectory: Trajectory,
        cache: PromptCache | None = None,
        prologue: Backend | None = None,
    ) -> None:
        memory = self._memory = backend.loop_memory()
        draws, *latent_shape = trajectory.noise.shape
        self.calls = len(trajectory.output_row) - draws - (trajectory.init is not None)
        self._engines = engines
        # All zero, not merely allocated: a slot that is not yet written has the weight 0, and 0 * NaN is NaN.
        self._history = memory.zeros("history", (len(trajectory.output_row), *latent_shape), np.float32)
        self._history.view(0).write(trajectory.noise[0])
        for draw in range(1, draws):
            self._history.view(self.calls + draw).write(trajectory.noise[draw])
        if trajectory.init is not None:
            encoded = _encoded(backend, engines["encode"], manifest.graphs["encode"], trajectory.init)
            repeated = np.ascontiguousarray(np.broadcast_to(encoded, latent_shape))
            self._history.view(self.calls + draws).write(repeated)
        prepared = run_prologue(prologue or backend, engines, manifest, trajectory, cache)
        self._per_call = {name: memory.settled(name, rows, rows=True) for name, rows in prepared.per_call.items()}
        constant = {name: memory.settled(name, buffer) for name, buffer in prepared.constant.items()}
        self._constant = {"history": self._history, **constant}
        self._tiled: TiledDecoder | None = None
        self._around: dict[str, Buffer] = {}
        factor = manifest.image.height // manifest.latent.height
        if trajectory.tile is not None and factor * max(latent_shape[-2:]) > trajectory.tile:
            self._tiled = TiledDecoder(backend, engines, manifest, trajectory.output_row, trajectory.tile)
        else:
            output_row = memory.settled("output_row", uploaded(backend, trajectory.output_row))
            image = memory.zeros("image", image_shape(manifest, self._history.shape), np.float32)
            self._around = {"history": self._history, "output_row": output_row, "image": image}

    def steps(self) -> Iterator[int]:
        """Runs call after call, and yields how many are done."""
        denoise = self._engines["denoise"]
        for name, buffer in self._constant.items():
            denoise.bind(name, buffer)
        for call in range(self.calls):
            for name, rows in self._per_call.items():
                denoise.bind(name, rows.view(call))
            # This slot is part of the input, too, under the weight 0. An engine writes its output after it has
            # combined its input; and whatever it read there in between would be finite, so 0 times it is 0.
            denoise.bind("prediction", self._history.view(1 + call))
            denoise.run()
            yield call + 1

    def decode(self) -> npt.NDArray[np.float32]:
        """The pictures, float32 [B, 3, height, width] in [0, 1]; to be called after the last step."""
        self.run_decoder()
        return self.picture()

    def draw(self) -> npt.NDArray[np.float32]:
        """All steps and the decoder, with nothing in between: a backend that records loops replays them as one."""
        self.replay()
        return self.picture()

    def replay(self) -> None:
        """All steps and the decoder, enqueued or replayed; `picture` waits for them."""

        def loop() -> None:
            for _ in self.steps():
                pass
            self.run_decoder()

        self._memory.replay(loop)

    def run_decoder(self) -> None:
        """Runs, or enqueues, the decoder on the history as it is; tiles are decoded when the picture is asked for."""
        if self._tiled is not None:
            return
        decode = self._engines["decode"]
        for name, buffer in self._around.items():
            decode.bind(name, buffer)
        decode.run()

    def picture(self) -> npt.NDArray[np.float32]:
        """What the decoder has made, on the host; tile by tile, it is made here."""
        if self._tiled is not None:
            return self._tiled.picture(self._history)
        return self._around["image"].read().astype(np.float32, copy=False)


def _encoded(backend: Backend, engine: Engine, graph: Graph, init: InitialImage) -> Array:
    """The latents of an initial image: [1, C, H, W]."""
    inputs = {"image": uploaded(backend, init.pixels), "noise": uploaded(backend, init.noise)}
    return run_graph(backend, engine, graph, inputs)["latents"].read()


def sample(
    backend: Backend,
    engines: Mapping[str, Engine],
    manifest: Manifest,
    trajectory: Trajectory,
    prologue: Backend | None = None,
) -> npt.NDArray[np.float32]:
    """The prologue, the whole loop and the decoder, without a look at the steps: float32 [B, 3, height, width]."""
    return Sampling(backend, engines, manifest, trajectory, prologue=prologue).draw()


def run_once(
    backend: Backend, engine: Engine, inputs: Mapping[str, Array], outputs: Mapping[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[np.float32]]:
    """One run of one engine: all its float32 outputs, by name and shape. For parity checks."""
    for name, values in inputs.items():
        engine.bind(name, uploaded(backend, values))
    results = {name: backend.buffer(shape, np.float32) for name, shape in outputs.items()}
    for name, buffer in results.items():
        engine.bind(name, buffer)
    engine.run()
    return {name: buffer.read().astype(np.float32, copy=False) for name, buffer in results.items()}
