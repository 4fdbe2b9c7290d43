"""What a directory of engines holds: its record, and its files as hashed bytes.

engine.json says what the engines were made from (the graphs' hashes), for (the backend's key) and as what (the options
of the build), and has the hash of every file beside it; engine.json.sha256 seals it.
"""

from collections import Counter
from pathlib import Path

import msgspec

from latentc.backends.protocol import Backend
from latentc.bundle import ENGINES, Bundle, hashed_files, read_sealed
from latentc.errors import BundleError
from latentc.schema import FileRecord, Strict

RECORD = "engine.json"


class EngineRecord(Strict, frozen=True):
    """BUNDLE/engines/TARGET/engine.json."""

    key: dict[str, str]  # what the backend says that an engine depends on
    graphs_sha256: dict[str, dict[str, str]]  # graph: {file of the bundle: sha256}
    files: dict[str, FileRecord]
    options: dict[str, str] = msgspec.field(default_factory=dict)  # what was asked of the build


def files_of(bundle: Bundle, backend: Backend) -> tuple[EngineRecord, dict[str, memoryview]] | None:
    """The record and hashed files of this machine's engines; None if there are none, BundleError if they cannot run."""
    root = bundle.root.resolve()
    if not (root / ENGINES).exists():
        return None
    if (root / ENGINES).is_symlink():
        raise BundleError(f"{root / ENGINES} is a link")
    own = root / ENGINES / backend.target
    others = sorted(path for path in (root / ENGINES).glob(backend.targets) if path.is_dir() and path != own)
    problems: list[str] = []
    for directory in [own, *others]:
        if not directory.exists():
            continue
        try:
            if directory.is_symlink():
                raise BundleError(f"{directory} is a link")
            record = record_of(directory)
            refusal = backend.refusal(record.key, record.options)
            if refusal is not None:
                raise BundleError(refusal)
            return record, checked_files(bundle, directory, record)
        except BundleError as error:
            problems.append(str(error))
    if problems:
        raise BundleError(problems[0])
    return None


def record_of(directory: Path) -> EngineRecord:
    """Reads engine.json; BundleError if its seal or its schema does not fit."""
    try:
        return msgspec.json.decode(read_sealed(directory, RECORD)[0], type=EngineRecord)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{RECORD} does not follow the schema: {error}") from None


def is_current(record: EngineRecord, backend: Backend) -> bool:
    """Whether engines with this record are what a build would make here now, graphs aside."""
    return record.key == backend.engine_key() and record.options == backend.build_options()


def checked_files(bundle: Bundle, directory: Path, record: EngineRecord) -> dict[str, memoryview]:
    """Every file of a record, hashed."""
    if record.graphs_sha256 != graphs_sha256(bundle):
        raise BundleError("made from other graphs")
    files: dict[str, memoryview] = {}
    for file, view, problem in hashed_files(directory, record.files):
        if problem is not None:
            raise BundleError(problem)
        files[file] = view
    return files


def graphs_sha256(bundle: Bundle) -> dict[str, dict[str, str]]:
    """{graph: {file: hash}}: what engines of this bundle are made from."""
    return {
        name: {file: bundle.manifest.files[file].sha256 for file in (graph.file, graph.weights)}
        for name, graph in bundle.manifest.graphs.items()
    }


def reusable(bundle: Bundle, backend: Backend) -> dict[str, dict[str, memoryview]]:
    """The files of this machine's engines whose graphs have not changed since, by graph; none with another key."""
    directory = bundle.root.resolve() / ENGINES / backend.target
    if not backend.needs_engines or not directory.exists():  # others are made in less time than they are hashed
        return {}
    try:
        record = record_of(directory)
        if not is_current(record, backend):
            return {}
        graphs = graphs_sha256(bundle)
        same = {graph for graph, hashes in graphs.items() if record.graphs_sha256.get(graph) == hashes}
        files: dict[str, dict[str, memoryview]] = {}
        for file, view, problem in hashed_files(directory, record.files):
            graph = file.rpartition(".")[0]
            if problem is None and graph in same:
                files.setdefault(graph, {})[file] = view
        recorded = Counter(file.rpartition(".")[0] for file in record.files)
        return {graph: views for graph, views in files.items() if len(views) == recorded[graph]}
    except BundleError:
        return {}
