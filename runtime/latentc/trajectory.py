"""One request as arrays: everything that the loop reads, computed before the loop begins."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentc.backends.protocol import Array
from latentc.conditioning import TextBatch, branches_of, labels_of, texts_of
from latentc.noise import NormalStream
from latentc.request import Request
from latentc.schema import LabelConditioning, Manifest, TextConditioning
from latentc.table import SolverTable
from latentc.text import Tokenizers

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InitialImage:
    """What the latents begin with instead of pure noise."""

    pixels: Floats  # [1, 3, height, width] in [0, 1]
    noise: Floats  # [1, C, H, W], of the encoder's posterior


@dataclass(frozen=True)
class Noise:
    """All random numbers of a request."""

    draws: Floats  # [1 + noise draws, B, C, H, W]: the unit noise, then each injected draw
    encoder: Floats | None  # [1, C, H, W]: drawn before all others, where an initial image is encoded


@dataclass(frozen=True)
class Trajectory:
    """What the graphs are given; B images, N calls, S = 1 + N + noise draws slots, one more with an initial image.

    noise       float32 [1 + noise draws, B, C, H, W]   the unit noise, then each injected draw
    per_call    name -> [N, ...]                        inputs of the denoiser that have one row for each call
    constant    name -> [...]                           inputs of the denoiser that are the same in every call
    output_row  float32 [S]
    texts       what the text encoders are given; their outputs become constants
    tile        pixels along a side of what is decoded at once; None: the whole picture
    """

    noise: Floats
    per_call: dict[str, Array]
    constant: dict[str, Array]
    output_row: Floats
    texts: tuple[TextBatch, ...] = ()
    init: InitialImage | None = None
    tile: int | None = None


def trajectory_of(
    conditioning: LabelConditioning | TextConditioning,
    multiple: int,
    request: Request,
    table: SolverTable,
    noise: Noise,
    tokenizers: Tokenizers,
    pixels: Floats | None = None,
) -> Trajectory:
    """The trajectory of a request, with classifier-free guidance (arXiv 2207.12598).

    The graph sums guidance_weights[k] * output[k] over its guidance branches: null + g (cond - null) is
    g * cond + (1 - g) * null. With `cfg_scale` g <= 1 there is one branch, and half the work.

    `multiple` is that of the latents' sides, `tokenizers` opens the files that `conditioning` names, `pixels`
    [1, 3, height, width] is the initial image.
    """
    weights = [request.cfg_scale, 1.0 - request.cfg_scale] if request.cfg_scale > 1.0 else [1.0]
    branches, batch = len(weights), request.count
    shape = (branches, batch)
    timestep = np.broadcast_to(table.timesteps[:, None, None], (table.calls, *shape))
    *_, height, width = noise.draws.shape
    constant: dict[str, Array] = {
        "guidance_weights": np.array(weights, np.float32),  # [branches]
        "grid_rows": np.arange(height // multiple, dtype=np.float32),
        "grid_columns": np.arange(width // multiple, dtype=np.float32),
    }
    if request.guidance is not None:
        constant["guidance"] = np.full(shape, request.guidance, np.float32)
    texts: tuple[TextBatch, ...] = ()
    if isinstance(conditioning, LabelConditioning):
        constant["class_labels"] = labels_of(conditioning, request, branches)
    else:
        texts = texts_of(conditioning, branches_of(conditioning, request, branches), tokenizers)
    init = None
    if pixels is not None:
        assert noise.encoder is not None, "an initial image comes with the noise of its posterior"
        init = InitialImage(pixels, noise.encoder)
    return Trajectory(
        noise=noise.draws,
        per_call={"input_row": table.input_rows, "timestep": np.ascontiguousarray(timestep)},
        constant=constant,
        output_row=table.output_row,
        texts=texts,
        init=init,
        tile=request.tile,
    )


def latent_shape(manifest: Manifest, request: Request) -> tuple[int, int, int, int]:
    """B, C, H, W of a request's latents."""
    latent, image = manifest.latent, manifest.image
    height = request.height * latent.height // image.height
    width = request.width * latent.width // image.width
    return (request.count, latent.channels, height, width)


def noise_from_seed(
    seed: int, shape: tuple[int, ...], noise_draws: int, first: Floats | None = None, encodes: bool = False
) -> Noise:
    """The draws of a diffusers pipeline with a CPU generator of `seed`; `shape` is that of the latents, [B, C, H, W].

    `first` replaces the unit noise; as in diffusers, the injected draws are then the generator's first. `encodes`
    says that an image is encoded first: the img2img pipelines sample its posterior before they draw the noise.
    """
    stream = NormalStream(seed)
    encoder = stream.draw((1, *shape[1:])) if encodes else None
    begin = [stream.draw(shape) if first is None else first]
    return Noise(np.stack(begin + [stream.draw(shape) for _ in range(noise_draws)]), encoder)
