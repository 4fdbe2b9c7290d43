"""How a request uses memory, in two ways, and what each will take (docs/memory.md).

`normal` keeps the engines of all graphs, each with weights of its own, laid out for speed. `low` has one
stage at a time, and its weights stay in the bundle's files: pages that the kernel drops when memory is short.

The prediction is of one picture at the bundle's defaults, drawn by ONNX Runtime on the CPU from the graphs (not from
built engines). It counts what comes on top of the process itself, and knows the manifest alone, no graph.
"""

from typing import Literal, TypeAlias, get_args

import msgspec

from latentc.schema import Graph, LabelConditioning, Manifest
from latentc.tiles import SHARED

Memory: TypeAlias = Literal["normal", "low"]
MEMORY: tuple[Memory, ...] = get_args(Memory)
_FLOAT_BYTES = 4
_AFTER_TEXTS = ("prompt", "schedule", "denoise", "decode")


class StageMemory(msgspec.Struct, frozen=True):
    """What is in memory while a stage runs."""

    weights_bytes: int  # of this stage: in `normal` memory of the process, in `low` pages of the bundle's file
    activations_bytes: int  # of this stage
    total_bytes: int  # what all stages hold


class Prediction(msgspec.Struct, frozen=True):
    """A whole request; `stages` are in the order in which they run."""

    peak_bytes: int
    peak_while: str  # "loading NAME" or "running NAME"
    stages: dict[str, StageMemory]


class TileMemory(msgspec.Struct, frozen=True):
    """What the decoder's activations take on a tile of so many pixels a side, and on the whole default size."""

    pixels: int
    activations_bytes: int
    whole_bytes: int


def tile_memory(manifest: Manifest) -> TileMemory | None:
    """For tiles of half the default size, or somewhat less; None where the sizes leave no such tile.

    By the share of pixels: attention over all latents grows faster, so that a tile takes no more than this.
    """
    if manifest.sizes is None:
        return None
    image, least = manifest.image, SHARED * manifest.sizes.multiple
    pixels = min(image.width, image.height) // 2 // least * least
    if not pixels:
        return None
    whole = manifest.graphs["decode"].activation_bytes
    return TileMemory(pixels, whole * pixels**2 // (image.width * image.height), whole)


def predicted(manifest: Manifest, memory: Memory) -> Prediction:
    """The memory of one picture at the defaults, without an initial image."""
    conditioning = manifest.conditioning
    texts = () if isinstance(conditioning, LabelConditioning) else tuple(e.graph for e in conditioning.encoders)
    order = [name for name in (*texts, *_AFTER_TEXTS) if name in manifest.graphs]
    return _low(manifest, order) if memory == "low" else _normal(manifest, order)


def _low(manifest: Manifest, order: list[str]) -> Prediction:
    stages = {}
    for name in order:
        weights = manifest.graphs[name].weight_bytes
        activations = _activations_bytes(manifest, name)
        stages[name] = StageMemory(weights, activations, weights + activations)
    return _prediction(stages, {})


def _normal(manifest: Manifest, order: list[str]) -> Prediction:
    weights = {name: _loaded_bytes(graph) for name, graph in manifest.graphs.items()}
    loading, loaded = {}, 0
    for name, graph in manifest.graphs.items():
        # The engine is made from the mapped file, which is let go of afterwards.
        loaded += weights[name]
        loading[f"loading {name}"] = loaded + graph.weight_bytes
    stages, kept = {}, 0
    for name in order:
        activations = _activations_bytes(manifest, name)
        kept += activations  # each engine has an arena of its own, which never gives back
        stages[name] = StageMemory(weights[name], activations, loaded + kept)
    return _prediction(stages, loading)


def _prediction(stages: dict[str, StageMemory], loading: dict[str, int]) -> Prediction:
    moments = loading | {f"running {name}": stage.total_bytes for name, stage in stages.items()}
    peak = max(moments, key=lambda moment: moments[moment])
    return Prediction(moments[peak], peak, stages)


def _loaded_bytes(graph: Graph) -> int:
    """The weights in the precision that the CPU computes in: half is converted when it is loaded, int8 is not."""
    return max(graph.weight_bytes, _FLOAT_BYTES * (graph.parameters - graph.int8_bytes) + graph.int8_bytes)


def _activations_bytes(manifest: Manifest, name: str) -> int:
    """The values between the nodes; in the loop also what the schedule graph made for all calls."""
    hoisting = manifest.hoisting
    rows = 0
    if name == "denoise":
        branches = 2 if manifest.defaults.cfg_scale > 1 and hoisting.rows_per_step == "batch" else 1
        rows = _FLOAT_BYTES * hoisting.row_width * branches * _calls(manifest)
    return manifest.graphs[name].activation_bytes + rows


def _calls(manifest: Manifest) -> int:
    """Of the denoiser, at the defaults."""
    pair = (manifest.defaults.solver, manifest.defaults.steps)
    return next(table.calls for table in manifest.tables if (table.solver, table.steps) == pair)
