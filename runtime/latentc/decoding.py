"""The decoder's side of the loop: the shape of what it returns, and its run on tiles (latentc.tiles).

The graph takes the whole history, and is linear in it. So for tiles the latents are put together here, once, and each
tile goes in as a history of two slots: what is to be decoded, with the weight 1, and zeros with the weight 0 (an
engine that was built for tables has two slots at least). One tile of one picture is in the engine at a time.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from latentc.backends.protocol import Backend, Buffer, Engine
from latentc.dims import bound_dims, evaluated
from latentc.errors import BundleError
from latentc.schema import Manifest
from latentc.tiles import decoded_by_tiles

Floats = npt.NDArray[np.float32]
_SLOTS = 2


def image_shape(manifest: Manifest, history: tuple[int, ...]) -> tuple[int, ...]:
    """What the decoder returns for a history of this shape; BundleError where that is not the manifest's picture."""
    graph = manifest.graphs["decode"]
    spec = next(spec for spec in graph.inputs if spec.name == "history")
    sizes = bound_dims([spec], {"history": history})
    shape = tuple(evaluated(dim, sizes) for dim in graph.outputs[0].shape)
    _, batch, _, height, width = history
    factor = manifest.image.height // manifest.latent.height
    if shape != (batch, manifest.image.channels, factor * height, factor * width):
        raise BundleError(f"graph decode returns {list(shape)}, which is not the manifest's picture")
    return shape


class TiledDecoder:
    """Decodes the history of a finished loop in tiles of `tile` pixels; its work is no part of a recorded loop."""

    def __init__(
        self, backend: Backend, engines: Mapping[str, Engine], manifest: Manifest, output_row: Floats, tile: int
    ) -> None:
        self._backend = backend
        self._engines = engines
        self._manifest = manifest
        self._output_row = output_row
        self._tile = tile * manifest.latent.height // manifest.image.height

    def picture(self, history: Buffer) -> Floats:
        """float32 [B, 3, f·H, f·W] in [0, 1] from the history [slots, B, C, H, W]."""
        latents = self._latents(history)
        pictures = np.empty(image_shape(self._manifest, history.shape), np.float32)
        for own, picture in zip(latents, pictures, strict=True):
            decoded_by_tiles(self._decode, own, self._tile, picture)
        return pictures

    def _latents(self, history: Buffer) -> Floats:
        """[B, C, H, W], slot by slot: a second copy of the history would be larger than a tile."""
        latents = np.zeros(history.shape[1:], np.float32)
        for slot, weight in enumerate(self._output_row):
            if weight:
                latents += weight * history.view(slot).read().astype(np.float32, copy=False)
        return latents

    def _decode(self, latents: Floats) -> Floats:
        """[3, f·h, f·w] of one tile [C, h, w]."""
        backend, decode = self._backend, self._engines["decode"]
        history = backend.buffer((_SLOTS, 1, *latents.shape), np.float32)
        history.view(0).write(latents[None])
        row = backend.buffer((_SLOTS,), np.float32)
        row.write(np.array([1, 0], np.float32))
        image = backend.buffer(image_shape(self._manifest, history.shape), np.float32)
        for name, buffer in (("history", history), ("output_row", row), ("image", image)):
            decode.bind(name, buffer)
        decode.run()
        drawn: Floats = image.read()[0].astype(np.float32, copy=False)
        return drawn
