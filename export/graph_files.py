"""Writes graphs as ONNX models whose weights lie in a file beside them, whatever the size of the whole.

Reads every tensor once and keeps none: one is in memory, or a small one beside it. Knows no graph.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from latentc import schema
from latentc.bundle import GraphBytes, map_file
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from tqdm import tqdm

from export.finite import FiniteCheck
from export.weights_file import Advance, Place, WeightsFile, places_of

# What a graph holds itself. ONNX Runtime reads the sizes of Split and Reshape there, and nowhere else (see MAX_PARTS in
# export/hoist/packing.py); onnx_ir's own limit.
INLINE_BYTES = 256
# A tensor of at most this size is read while the one before it is written.
AHEAD_BYTES = 128 << 20


@dataclass(frozen=True)
class WrittenGraph(GraphBytes):
    """A graph as the runtime takes it, mapped from its files, and what the manifest says of these."""

    records: Mapping[str, schema.FileRecord]


def write_graphs(
    directory: Path,
    graphs: Mapping[str, ir.Model],
    work: Path | None = None,
    shared: Mapping[str, str] | None = None,
) -> dict[str, WrittenGraph]:
    """graphs/NAME.onnx and graphs/NAME.weights; returns them mapped, with what the manifest says of them.

    work: where journals lie (`Stage.work`), by which a later call continues this one; without it nothing is continued.
    shared: graphs without a file of weights, by the graph in whose file all of theirs are, under the same names.
    Raises SourceError for a tensor that holds NaN, or infinity where it is no attention mask.
    """
    folder = directory / "graphs"
    folder.mkdir(exist_ok=True)
    shared = shared or {}
    own = {name: model for name, model in graphs.items() if name not in shared}
    names = {f"{name}.onnx" for name in graphs} | {f"{name}.weights" for name in own}
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(
                WeightsFile(folder / f"{name}.weights", weight_places(model), work and work / f"{name}.journal")
            )
            for name, model in own.items()
        }
        with _byte_bar("check", sum(file.journaled_bytes() for file in files.values()), 0) as advance:
            for file in files.values():
                file.recover(advance)
        total, kept = (sum(sizes) for sizes in zip(*((f.num_bytes, f.kept_bytes) for f in files.values()), strict=True))
        with _byte_bar("weights", total, kept) as advance:
            written = {name: _write_graph(directory, name, model, files[name], advance) for name, model in own.items()}
    return {
        name: written[name] if name in own else _write_sharing(directory, name, model, shared[name], graphs)
        for name, model in graphs.items()
    }


def _write_graph(directory: Path, name: str, model: ir.Model, file: WeightsFile, advance: Advance) -> WrittenGraph:
    _write_weights(model, file, advance)
    graph, weights = f"graphs/{name}.onnx", f"graphs/{name}.weights"
    data = _graph_file(name, model, file.places, f"{name}.weights")
    (directory / graph).write_bytes(data)
    records = {
        graph: schema.FileRecord(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data)),
        weights: file.finished(),
    }
    return WrittenGraph(
        name, map_file(directory, graph), f"{name}.weights", map_file(directory, weights), records=records
    )


def _write_sharing(
    directory: Path, name: str, model: ir.Model, owner: str, graphs: Mapping[str, ir.Model]
) -> WrittenGraph:
    """A graph whose weights are among those of `owner`, which are written."""
    mine, theirs = dict(_tensors(model)), dict(_tensors(graphs[owner]))
    other = [key for key, tensor in mine.items() if tensor.nbytes > INLINE_BYTES and theirs.get(key) is not tensor]
    assert not other, f"{name} shares the weights of {owner}, and {other[0]} is none of them"
    places = [place for place in weight_places(graphs[owner]) if place.name in mine]
    graph, weights = f"graphs/{name}.onnx", f"graphs/{owner}.weights"
    data = _graph_file(name, model, places, f"{owner}.weights")
    (directory / graph).write_bytes(data)
    records = {graph: schema.FileRecord(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))}
    return WrittenGraph(
        name, map_file(directory, graph), f"{owner}.weights", map_file(directory, weights), records=records
    )


def _write_weights(model: ir.Model, file: WeightsFile, advance: Advance) -> None:
    """Writes what is missing, and reads the next tensor meanwhile, if it is not too large to have two in memory."""

    def read(place: Place) -> np.ndarray:
        tensor = model.graph.initializers[place.name].const_value
        assert tensor is not None, f"{place.name} has a place, but no value"
        return tensor.numpy()

    missing = file.missing
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as reader:
        ahead: Future[np.ndarray] | None = None
        for place, following in itertools.zip_longest(missing, missing[1:]):
            array = read(place) if ahead is None else ahead.result()
            has_room = following and following.num_bytes <= AHEAD_BYTES
            ahead = reader.submit(read, following) if has_room else None
            file.write(array, advance)
            del array  # before the next large one is read


def weight_places(model: ir.Model) -> tuple[Place, ...]:
    """Where each tensor that is too large for the .onnx file itself lies in the .weights file."""
    assert all(graph is model.graph for graph in model.graphs()), "a graph without control flow"
    return places_of(
        (name, tensor)
        for name, tensor in _tensors(model)
        if tensor.dtype is not ir.DataType.STRING and tensor.nbytes > INLINE_BYTES
    )


def weights_bytes(model: ir.Model) -> int:
    """The size of the .weights file, before it is written."""
    places = weight_places(model)
    return places[-1].end if places else 0


def file_records(graphs: Mapping[str, WrittenGraph]) -> dict[str, schema.FileRecord]:
    """What is known of the files of all graphs."""
    return {file: record for graph in graphs.values() for file, record in graph.records.items()}


def _graph_file(name: str, model: ir.Model, places: Sequence[Place], weights: str) -> bytes:
    """`model` in ONNX's format, with what has a place in the file `weights` left out of it; checks what stays in it."""
    # The trace's notes (module paths, for islands) hold file names of this machine: equal exports are equal bytes.
    bare = model.clone()  # shares all tensors
    ClearMetadataAndDocStringPass()(bare)
    bare.metadata_props.clear()
    external = {place.name: place for place in places}
    for tensor_name, tensor in _tensors(bare):
        place = external.get(tensor_name)
        if place is not None:
            bare.graph.initializers[place.name].const_value = ir.ExternalTensor(
                weights,
                place.offset,
                place.num_bytes,
                tensor.dtype,
                shape=ir.Shape(place.shape),
                name=place.name,
            )
        elif tensor.dtype is not ir.DataType.STRING:
            array = tensor.numpy()
            check = FiniteCheck(tensor.dtype)
            check.feed(np.ascontiguousarray(array).reshape(-1))
            check.require(f"graph {name}: {tensor_name}")
            bare.graph.initializers[tensor_name].const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor_name)
    data: bytes = ir.serde.serialize_model(bare).SerializeToString()
    return data


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every initializer that has a value, by its name, in the graph's order."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            yield name, value.const_value


@contextlib.contextmanager
def _byte_bar(what: str, total: int, done: int) -> Iterator[Advance]:
    """Shows bytes, rate and time left on stderr while they pass by, if that is a terminal and there are any."""
    with tqdm(
        desc=what, total=total, initial=done, unit="B", unit_scale=True, leave=False, disable=None if total else True
    ) as bar:
        yield bar.update
