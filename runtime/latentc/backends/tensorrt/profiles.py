"""The shapes that an engine is built for: least, best and most of every symbolic dim.

From the manifest and the options of the build:

    slots               2 … the longest table; best: the default table's
    batch               1 … --batch (4); best: 1
    guidance_branches   1 … 2 where the pipeline has guidance; best: what the defaults ask for
    texts               1 … a prompt and a negative prompt for each picture
    tokens              the lengths of the encoders' rules
    grid_height, …      of --size, or of every size that the manifest allows; best: the first --size, or the default;
                        of the decoder from 1 on, for the tiles of --tile, unless it is built for one size

The schedule graph runs all calls as one batch, so its branches (or, where one row serves all images, its only batch)
are as many times more as the longest table has calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from latentc.backends.options import EngineOptions
from latentc.dims import evaluated
from latentc.errors import RequestError
from latentc.schema import Manifest, Table, TextConditioning

DEFAULT_BATCH = 4


@dataclass(frozen=True)
class Range:
    """What one dim, or a whole shape, may be."""

    least: int
    best: int
    most: int


@dataclass(frozen=True)
class Profile:
    """The shapes of one input of a graph."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


def profiles_of(manifest: Manifest, graph: str, options: EngineOptions) -> dict[str, Profile]:
    """The shapes of every input of `graph`; RequestError where a --size cannot be drawn."""
    dims = _dims(manifest, options)
    if graph == "schedule":
        dims = _of_all_calls(manifest, dims)
    if graph == "prompt":  # runs branch by branch; `latentc verify` runs it as a whole
        dims["guidance_branches"] = Range(1, 1, dims["guidance_branches"].most)
    encoders = manifest.conditioning.encoders if isinstance(manifest.conditioning, TextConditioning) else ()
    lengths = [
        length
        for encoder in encoders
        if graph == encoder.graph or graph in ("prompt", "schedule", "denoise")
        for length in (encoder.prompt.length, encoder.negative.length)
    ]
    if lengths:
        dims["tokens"] = Range(min(lengths), lengths[0], max(lengths))
    if graph == "decode":
        for side in ("grid_width", "grid_height"):
            if dims[side].least < dims[side].most:  # a tile at an edge may be a single row or column (latentc.tiles)
                dims[side] = Range(1, dims[side].best, dims[side].most)
    if graph == "encode":
        dims["batch"] = Range(1, 1, 1)
    sides: dict[str, Mapping[str, int]] = {
        side: {name: getattr(dim, side) for name, dim in dims.items()} for side in ("least", "best", "most")
    }
    return {
        spec.name: Profile(
            *(tuple(evaluated(dim, sides[side]) for dim in spec.shape) for side in ("least", "best", "most"))
        )
        for spec in manifest.graphs[graph].inputs
    }


def _dims(manifest: Manifest, options: EngineOptions) -> dict[str, Range]:
    batch = DEFAULT_BATCH if options.batch is None else options.batch
    if batch < 1:
        raise RequestError(f"--batch {batch} is out of range; give 1 or more")
    branches = 2 if manifest.guided else 1
    usual = branches if manifest.defaults.cfg_scale > 1 else 1
    slots = [_slots(table) for table in manifest.tables]
    default = next((t for t in manifest.tables if _is_default(manifest, t)), manifest.tables[0])
    dims = {
        "slots": Range(2, _slots(default), max(slots)),
        "batch": Range(1, 1, batch),
        "guidance_branches": Range(1, usual, branches),
        "texts": Range(1, 1, 2 * batch),
    }
    dims["grid_width"], dims["grid_height"] = _grid(manifest, options)
    return dims


def _of_all_calls(manifest: Manifest, dims: dict[str, Range]) -> dict[str, Range]:
    """The schedule graph's: [calls · branches, batch], or [calls, 1] with one row for all images."""
    calls = max(table.calls for table in manifest.tables)
    default = next((t for t in manifest.tables if _is_default(manifest, t)), manifest.tables[0])
    one = manifest.hoisting.rows_per_step == "one"
    branches = Range(1, 1, 1) if one else dims["guidance_branches"]
    return {
        **dims,
        "guidance_branches": Range(1, default.calls * branches.best, calls * branches.most),
        "batch": Range(1, 1, 1) if one else dims["batch"],
    }


def _grid(manifest: Manifest, options: EngineOptions) -> tuple[Range, Range]:
    """Width and height in units of the latents' multiple."""
    image, latent, sizes = manifest.image, manifest.latent, manifest.sizes
    own = (image.width, image.height)
    wanted = list(options.sizes)
    for width, height in wanted:
        allowed = sizes is not None and all(
            side % sizes.multiple == 0 and sizes.minimum <= side <= sizes.maximum for side in (width, height)
        )
        if (width, height) != own and not allowed:
            possible = (
                f"{own[0]}x{own[1]} only"
                if sizes is None
                else f"multiples of {sizes.multiple} from {sizes.minimum} to {sizes.maximum}"
            )
            raise RequestError(f"--size {width}x{height} cannot be drawn; {manifest.name} draws {possible}")
    if not wanted:
        wanted = [own]
        if sizes is not None:
            least = -(-sizes.minimum // sizes.multiple) * sizes.multiple
            most = sizes.maximum // sizes.multiple * sizes.multiple
            wanted += [(least, least), (most, most)]
    pixels = image.height // latent.height * latent.multiple  # of one unit
    widths, heights = ([size[side] // pixels for size in wanted] for side in (0, 1))
    return Range(min(widths), widths[0], max(widths)), Range(min(heights), heights[0], max(heights))


def _is_default(manifest: Manifest, table: Table) -> bool:
    return (table.solver, table.steps) == (manifest.defaults.solver, manifest.defaults.steps)


def _slots(table: Table) -> int:
    return 1 + table.calls + table.noise_draws + table.img2img
