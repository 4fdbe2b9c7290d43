"""The levels of the step cache, measured again: pictures with cached steps against those of full ones.

At the bundle's default solver and steps, on the request of parity.json; against the same engines without the cache, and
against the picture that torch left in the bundle.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import numpy as np

from latentc.bundle import Bundle
from latentc.errors import BundleError
from latentc.parity import psnr_db
from latentc.request import Request
from latentc.schema import Figure, Parity
from latentc.table import table_from_bundle
from latentc.tensors import tensor
from latentc.text import Tokenizers
from latentc.trajectory import Trajectory, latent_shape, noise_from_seed, trajectory_of

IMAGE = "trajectory/image"
FULL_STEPS = "trajectory/full_steps"  # torch's picture at the bundle's defaults

Draw = Callable[[Trajectory], np.ndarray]


def is_of_cache(figure: Figure) -> bool:
    """Whether a figure is of a level: `trajectory/image@LEVEL` or `trajectory/full_steps@LEVEL`."""
    return figure.tensor.partition("@")[0] in (IMAGE, FULL_STEPS) and "@" in figure.tensor


def measured_levels(
    bundle: Bundle, parity: Parity, request: Request, references: dict[str, np.ndarray], draw: Draw, how: str
) -> Iterator[Figure]:
    """The figures of all levels. `request` is parity.json's; BundleError where a level of the manifest has none."""
    cache = bundle.manifest.step_cache
    wanted = {f"{name}@{level}" for level in (cache.levels if cache else ()) for name in (IMAGE, FULL_STEPS)}
    figures = {figure.tensor: figure for figure in parity.figures if is_of_cache(figure)}
    if figures.keys() != wanted:
        odd = ", ".join(sorted(figures.keys() ^ wanted))
        raise BundleError(f"{bundle.root}: parity.json must compare every level of the step cache; look at {odd}")
    if cache is None:
        return
    request = _at_the_defaults(bundle, request)
    full = _trajectory(bundle, parity, request)
    picture = draw(full)
    expected = tensor(references, FULL_STEPS, picture.shape, parity.references)
    for level, least_db in cache.levels.items():
        cached = draw(_trajectory(bundle, parity, replace(request, cache=level)))
        for name, other in ((IMAGE, picture), (FULL_STEPS, expected)):
            figure = figures[f"{name}@{level}"]
            if name == IMAGE and figure.bound < least_db:
                raise BundleError(f"{bundle.root}: parity.json bounds {figure.tensor} below the level, {least_db:g} dB")
            against = f"torch's pipeline and the loop, {how}" if other is expected else f"full steps, {how}"
            yield msgspec.structs.replace(figure, value=psnr_db(cached, other), against=against)


def _at_the_defaults(bundle: Bundle, request: Request) -> Request:
    defaults, size = bundle.manifest.defaults, (request.width, request.height)
    for table in bundle.manifest.tables:
        if (table.solver, table.steps) == (defaults.solver, defaults.steps) and table.size in (None, size):
            return replace(request, table=table)
    raise BundleError(f"{bundle.root}: there is no table of the defaults at {size[0]}x{size[1]}")


def _trajectory(bundle: Bundle, parity: Parity, request: Request) -> Trajectory:
    manifest, table = bundle.manifest, table_from_bundle(bundle, request.table)
    noise = noise_from_seed(parity.seed, latent_shape(manifest, request), table.noise_draws)
    tokenizers = Tokenizers(bundle.tokenizers())
    return trajectory_of(manifest.conditioning, manifest.latent.multiple, request, table, noise, tokenizers)
