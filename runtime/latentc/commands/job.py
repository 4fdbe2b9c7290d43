"""A request from what was asked to what the bundle can do, with the files that it names read.

It knows neither flags nor lines; all that can be wrong with a request is found here, before any work is done.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentc.bundle import Bundle
from latentc.errors import RequestError
from latentc.init_image import pixels_from_file
from latentc.latents import latents_from_file
from latentc.noise import MAX_SEED
from latentc.picture import output_paths
from latentc.request import Asked, Request, resolve
from latentc.trajectory import latent_shape


@dataclass(frozen=True)
class Wanted:
    """One request as it was asked for; None is "not given", and of `output`: PNG in the report, no file."""

    output: Path | None
    prompts: Sequence[str] = ()
    negative_prompts: Sequence[str] = ()
    label: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    solver: str | None = None
    cfg_scale: float | None = None
    guidance: float | None = None
    seed: int | None = None
    batch: int | None = None
    separate: bool = False
    latents: Path | None = None
    init_image: Path | None = None
    strength: float | None = None
    tile: int | None = None
    no_metadata: bool = False


@dataclass(frozen=True)
class Job:
    """A request that the bundle can do: its files are read, and the place of its pictures is looked at."""

    wanted: Wanted
    request: Request
    seed: int
    first: npt.NDArray[np.float32] | None  # [B, C, H, W], the initial noise where a file gives it
    pixels: npt.NDArray[np.float32] | None  # [1, 3, height, width], the initial image
    paths: list[Path] | None  # one for each picture, or for all in one grid


def job_of(bundle: Bundle, wanted: Wanted) -> Job:
    """Resolves, reads and checks all that can be wrong before any work is done; raises LatentcError."""
    request, first = _request(bundle, wanted)
    pixels = None
    if wanted.init_image is not None:
        pixels = pixels_from_file(wanted.init_image, request.width, request.height)
    seed = secrets.randbelow(2**32) if wanted.seed is None else wanted.seed
    if not 0 <= seed <= MAX_SEED:
        raise RequestError(f"-s {seed} is out of range; give 0 to {MAX_SEED}")
    paths = None if wanted.output is None else output_paths(wanted.output, request.count, wanted.separate)
    return Job(wanted, request, seed, first, pixels, paths)


def _request(bundle: Bundle, wanted: Wanted) -> tuple[Request, npt.NDArray[np.float32] | None]:
    """The resolved request, and the initial noise if a file gives it."""
    manifest = bundle.manifest
    asked = Asked(
        label=wanted.label,
        prompts=wanted.prompts,
        negative_prompts=wanted.negative_prompts,
        width=wanted.width,
        height=wanted.height,
        steps=wanted.steps,
        solver=wanted.solver,
        cfg_scale=wanted.cfg_scale,
        guidance=wanted.guidance,
        count=wanted.batch,
        strength=wanted.strength,
        init_image=wanted.init_image is not None,
        tile=wanted.tile,
    )
    if wanted.latents is None:
        return resolve(manifest, asked), None
    # Their size is the one that is asked for; how many they are decides the number of pictures.
    _, *shape = latent_shape(manifest, resolve(manifest, replace(asked, count=None)))
    first = latents_from_file(wanted.latents, (shape[0], shape[1], shape[2]))
    return resolve(manifest, asked, len(first)), first
