"""The loop: one engine, called once for each row of the table, and then the decoder.

It knows no solver (the rows are the solver), no backend and no family. Nothing is computed or copied
on the host between two calls: the denoiser writes its output straight into the next slot of the
history.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from latentc.backends.protocol import Array, Backend, Buffer, Engine
from latentc.schema import Image
from latentc.trajectory import Trajectory


class Sampling:
    """One request on its way through the engines.

    sampling = Sampling(backend, denoise, decode, trajectory, image)
    for call in sampling.steps():
        ...                         # progress; or stop here
    picture = sampling.decode()     # float32 [B, 3, height, width] in [0, 1]
    """

    def __init__(self, backend: Backend, denoise: Engine, decode: Engine, trajectory: Trajectory, image: Image) -> None:
        draws, *latent_shape = trajectory.noise.shape
        self._calls = len(trajectory.output_row) - draws
        self._denoise, self._decode = denoise, decode
        # All zero, not merely allocated: a slot that is not yet written has the weight 0, and 0 * NaN is NaN.
        self._history = backend.buffer((len(trajectory.output_row), *latent_shape), np.float32)
        self._history.view(0).write(trajectory.noise[0])
        for draw in range(1, draws):
            self._history.view(self._calls + draw).write(trajectory.noise[draw])
        self._per_call = {name: _uploaded(backend, rows) for name, rows in trajectory.per_call.items()}
        denoise.bind("history", self._history)
        for name, values in trajectory.constant.items():
            denoise.bind(name, _uploaded(backend, values))
        decode.bind("history", self._history)
        decode.bind("output_row", _uploaded(backend, trajectory.output_row))
        self._image = backend.buffer((latent_shape[0], image.channels, image.height, image.width), np.float32)
        decode.bind("image", self._image)

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
    backend: Backend, denoise: Engine, decode: Engine, trajectory: Trajectory, image: Image
) -> npt.NDArray[np.float32]:
    """The whole loop and the decoder, without a look at the steps: float32 [B, 3, height, width]."""
    sampling = Sampling(backend, denoise, decode, trajectory, image)
    for _ in sampling.steps():
        pass
    return sampling.decode()


def run_once(
    backend: Backend, engine: Engine, inputs: dict[str, Array], output: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """One run of one engine on `inputs`: its float32 `output` of `shape`. For parity checks."""
    for name, values in inputs.items():
        engine.bind(name, _uploaded(backend, values))
    result = backend.buffer(shape, np.float32)
    engine.bind(output, result)
    engine.run()
    return result.read().astype(np.float32, copy=False)


def _uploaded(backend: Backend, values: Array) -> Buffer:
    buffer = backend.buffer(values.shape, values.dtype.type)
    buffer.write(values)
    return buffer
