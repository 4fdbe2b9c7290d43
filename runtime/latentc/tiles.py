"""A decoder on overlapping tiles of the latents: its memory is that of a tile, whatever the size of the picture.

As diffusers' AutoencoderKL.tiled_decode: each tile shares a quarter with its neighbours, and where two overlap the
picture goes over linearly from the one above, then from the one on the left. Tiles at the lower and right edge are
smaller.
One difference: the graph returns [0, 1], so a tile is clamped before it is blended, in diffusers after it.

Contract: knows no engine, no backend and no manifest. What is held beside the picture is one tile, and the edges of the
tiles of one row.

Legend: C/H/W = latents, f = pixels per latent, tile = latents along a side of a tile.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
SHARED = 4  # one part of so many of a tile is its neighbour's, too


def decoded_by_tiles(decode: Callable[[Floats], Floats], latents: Floats, tile: int, picture: Floats) -> None:
    """Fills `picture` [3, f·H, f·W] from `latents` [C, H, W]; `decode` makes [3, f·h, f·w] of [C, h, w].

    `tile` is a multiple of 4: then what is kept of a tile is as long as the step to the next one.
    """
    assert tile > 0, "a tile is not empty"
    assert tile % SHARED == 0, "a quarter of a tile is a number of latents"
    _, height, width = latents.shape
    factor = picture.shape[-1] // width
    step, shared, kept = tile - tile // SHARED, factor * (tile // SHARED), factor * (tile - tile // SHARED)
    lower_edges: dict[int, Floats] = {}  # by column, of the tiles above: [3, shared, f·w]
    for top in range(0, height, step):
        right_edge: Floats | None = None  # of the tile on the left: [3, f·h, shared]
        for left in range(0, width, step):
            piece = decode(np.ascontiguousarray(latents[:, top : top + tile, left : left + tile]))
            if top:
                _fade(lower_edges[left], piece)
            if right_edge is not None:
                _fade(right_edge.swapaxes(1, 2), piece.swapaxes(1, 2))
            lower_edges[left] = piece[:, -shared:].copy()
            right_edge = piece[:, :, -shared:].copy()
            rows, columns = min(kept, piece.shape[1]), min(kept, piece.shape[2])
            y, x = factor * top, factor * left
            picture[:, y : y + rows, x : x + columns] = piece[:, :rows, :columns]


def _fade(edge: Floats, piece: Floats) -> None:
    """Goes over from the last rows of `edge` [3, rows, columns] to the first of `piece`, in place."""
    rows = min(edge.shape[1], piece.shape[1])
    weight = (np.arange(rows) / rows).astype(np.float32)[:, None]
    piece[:, :rows] = edge[:, -rows:] * (1 - weight) + piece[:, :rows] * weight
