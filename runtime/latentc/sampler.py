"""The loop: one engine, called once for each row of the table, and then the decoder.

It knows no solver (the rows are the solver), no backend and no family. Nothing is computed or copied
on the host between two calls: the denoiser writes its output straight into the next slot of the
history.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from latentc.backends.protocol import Array, Backend, Engine
from latentc.prologue import PromptCache, run_prologue, uploaded
from latentc.schema import Manifest
from latentc.trajectory import Trajectory


class Sampling:
    """One request on its way through the engines.

    sampling = Sampling(backend, engines, manifest, trajectory)     # the prologue runs here
    for call in sampling.steps():
        ...                         # progress; or stop here
    picture = sampling.decode()     # float32 [B, 3, height, width] in [0, 1]
    """

    def __init__(
        self,
        backend: Backend,
        engines: Mapping[str, Engine],
        manifest: Manifest,
        trajectory: Trajectory,
        cache: PromptCache | None = None,
    ) -> None:
        draws, *latent_shape = trajectory.noise.shape
        self._calls = len(trajectory.output_row) - draws
        self._denoise, self._decode = engines["denoise"], engines["decode"]
        # All zero, not merely allocated: a slot that is not yet written has the weight 0, and 0 * NaN is NaN.
        self._history = backend.buffer((len(trajectory.output_row), *latent_shape), np.float32)
        self._history.view(0).write(trajectory.noise[0])
        for draw in range(1, draws):
            self._history.view(self._calls + draw).write(trajectory.noise[draw])
        prepared = run_prologue(backend, engines, manifest, trajectory, cache)
        self._per_call = prepared.per_call
        self._denoise.bind("history", self._history)
        for name, buffer in prepared.constant.items():
            self._denoise.bind(name, buffer)
        self._decode.bind("history", self._history)
        self._decode.bind("output_row", uploaded(backend, trajectory.output_row))
        image = manifest.image
        self._image = backend.buffer((latent_shape[0], image.channels, image.height, image.width), np.float32)
        self._decode.bind("image", self._image)

    def steps(self) -> Iterator[int]:
        """Runs call after call, and yields how many are done."""
        for call in range(self._calls):
            for name, rows in self._per_call.items():
                self._denoise.bind(name, rows.view(call))
            # This slot is part of the input, too, under the weight 0. An engine writes its output after it has
            # combined its input; and whatever it read there in between would be finite, so 0 times it is 0.
            self._denoise.bind("prediction", self._history.view(1 + call))
            self._denoise.run()
            yield call + 1

    def decode(self) -> npt.NDArray[np.float32]:
        """The pictures, float32 [B, 3, height, width] in [0, 1]; to be called after the last step."""
        self._decode.run()
        return self._image.read().astype(np.float32, copy=False)


def sample(
    backend: Backend, engines: Mapping[str, Engine], manifest: Manifest, trajectory: Trajectory
) -> npt.NDArray[np.float32]:
    """The prologue, the whole loop and the decoder, without a look at the steps: float32 [B, 3, height, width]."""
    sampling = Sampling(backend, engines, manifest, trajectory)
    for _ in sampling.steps():
        pass
    return sampling.decode()


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
