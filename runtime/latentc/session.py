"""A bundle that is open and ready to draw: the way in for Python programs.

session = open_session(Path("build/emoji"))
request = resolve(session.bundle.manifest, Asked(label="food-fruit", count=4))
pictures = session.draw(request, seed=7)        # float32 [4, 3, height, width] in [0, 1]
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentc.backends import AUTO, open_backend, resolve_backend
from latentc.backends.protocol import Backend, Engine
from latentc.bundle import Bundle, open_bundle
from latentc.engines import LOOP, load_engines
from latentc.errors import RequestError
from latentc.memory import Memory
from latentc.prompt_cache import PromptCache
from latentc.request import Request
from latentc.sampler import Sampling
from latentc.stages import OneAtATime
from latentc.table import table_from_bundle
from latentc.text import Tokenizers
from latentc.trajectory import Trajectory, latent_shape, noise_from_seed, trajectory_of


@dataclass(frozen=True)
class Session:
    """Engines of one bundle on one backend, for as many requests as are wanted, one after the other."""

    bundle: Bundle
    backend: Backend
    engines: Mapping[str, Engine]
    cache: PromptCache = field(default_factory=PromptCache)
    prologue: Backend | None = None  # of the engines that run before the loop, where it is another backend

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """Kept open: a large one takes longer to read than a text to encode."""
        return Tokenizers(self.bundle.tokenizers())

    def draw(
        self, request: Request, seed: int, pixels: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """float32 [B, 3, height, width] in [0, 1]; `pixels` [1, 3, height, width] is the initial image, if any.

        A prompt that is cut is warned of (UserWarning): what was left out is said, never hidden.
        """
        trajectory = trajectory_of_request(self.bundle, request, seed, pixels=pixels, tokenizers=self.tokenizers)
        for notice in dict.fromkeys(notice for batch in trajectory.texts for notice in batch.notices):
            warnings.warn(notice, stacklevel=2)
        return self.sampling(trajectory).draw()

    def sampling(self, trajectory: Trajectory) -> Sampling:
        """The request on its way: its steps can be watched, and stopped."""
        return Sampling(self.backend, self.engines, self.bundle.manifest, trajectory, self.cache, self.prologue)

    def in_lane(self) -> "Session":
        """A session for requests that run beside this one's: weights are shared, memory and bindings are its own."""
        if isinstance(self.engines, OneAtATime):
            raise RequestError("with --memory low one request runs at a time; open the session with normal memory")
        lane = self.backend.lane()
        prologue = lane if self.prologue in (None, self.backend) else self.prologue.lane()
        engines = {name: (lane if name in LOOP else prologue).adopted(engine) for name, engine in self.engines.items()}
        return replace(self, backend=lane, engines=engines, cache=PromptCache(), prologue=prologue)


def open_session(
    path: Path, backend: str = AUTO, threads: int = 0, memory: Memory = "normal", prologue: str = ""
) -> Session:
    """Opens and hashes a bundle, and loads its engines, or its graphs where none are built.

    With `low` memory nothing is loaded before it is needed, and nothing is kept but the stage that runs. `prologue`
    "cpu" leaves what runs before the loop to ONNX Runtime on the CPU.
    """
    bundle, opened = open_bundle(path), open_backend(resolve_backend(backend, path), threads)
    first = open_backend("onnxruntime", threads) if prologue == "cpu" else None
    loaded = load_engines(bundle, opened, memory, first)
    return Session(bundle, opened, loaded.engines, prologue=loaded.prologue)


def trajectory_of_request(
    bundle: Bundle,
    request: Request,
    seed: int,
    first: npt.NDArray[np.float32] | None = None,
    pixels: npt.NDArray[np.float32] | None = None,
    tokenizers: Tokenizers | None = None,
) -> Trajectory:
    """All arrays of a request: what diffusers would draw from a CPU generator of `seed`, texts as token ids.

    `first` [B, C, H, W] replaces the initial noise, `pixels` [1, 3, height, width] is an initial image,
    `tokenizers` are those that a session keeps open.
    """
    manifest = bundle.manifest
    if (request.skipped is None) != (pixels is None):
        raise RequestError("an initial image and Asked(init_image=True) come together; give both, or neither")
    wanted = (1, manifest.image.channels, request.height, request.width)
    if pixels is not None and (pixels.shape != wanted or pixels.dtype != np.float32):
        raise RequestError(f"pixels are {pixels.dtype} {list(pixels.shape)}, expected float32 {list(wanted)}")
    table = table_from_bundle(bundle, request.table, request.skipped)
    shape = latent_shape(manifest, request)
    if first is not None and first.shape != shape:
        raise RequestError(f"the initial noise has shape {list(first.shape)}, expected {list(shape)}")
    noise = noise_from_seed(seed, shape, table.noise_draws, first, encodes=pixels is not None)
    opened = Tokenizers(bundle.tokenizers()) if tokenizers is None else tokenizers
    multiple = manifest.latent.multiple
    return trajectory_of(manifest.conditioning, multiple, request, table, noise, opened, pixels)
