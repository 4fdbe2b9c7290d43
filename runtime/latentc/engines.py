"""Engines kept in the bundle: BUNDLE/engines/TARGET/, made on the machine that runs them.

engine.json records what the engines were made from (the graphs' hashes) and for (the backend's key),
and the hash of every file beside it; engine.json.sha256 seals it as manifest.json.sha256 seals the
manifest. An engine whose record, key or hashes do not fit is not run: the graphs are, and one line says
why. Engines can always be made again, so they are not synced to the disk; what a power cut
leaves half-written does not have its hash.

A build stages beside its place and renames, under a lock that dies with its process: after a
kill there is the old engine or none, and what was staged is removed by the next build.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.backends.protocol import Backend, Engine
from latentc.bundle import ENGINES, Bundle, hashed_files, read_sealed
from latentc.errors import BundleError
from latentc.memory import Memory
from latentc.schema import FileRecord, Strict
from latentc.stages import OneAtATime

RECORD = "engine.json"
_STAGE = ".stage-"


class EngineRecord(Strict, frozen=True):
    """BUNDLE/engines/TARGET/engine.json."""

    key: dict[str, str]  # what the backend says that an engine depends on
    graphs_sha256: dict[str, dict[str, str]]  # graph: {file of the bundle: sha256}
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class LoadedEngines:
    """Engines by graph name, and where they came from: `built` ones, or the graphs, perhaps for a `reason`."""

    engines: Mapping[str, Engine]
    built: bool
    reason: str | None


def load_engines(bundle: Bundle, backend: Backend, memory: Memory = "normal") -> LoadedEngines:
    """The built engines of this machine where they are whole and up to date, else engines from the graphs.

    With `low` memory always from the graphs, one at a time: the weights of built engines are copies in the precision
    that the processor computes in, which makes those of a half-precision model twice as large.
    """
    if memory == "low":

        def load(name: str) -> Engine:
            return backend.load_graph(bundle.graph(name), mapped=True)

        built = (bundle.root / ENGINES / backend.target).exists()
        reason = "--memory low reads the graphs' own weights" if built else None
        return LoadedEngines(OneAtATime(tuple(bundle.manifest.graphs), load), False, reason)
    return _whole(bundle, backend)


def _whole(bundle: Bundle, backend: Backend) -> LoadedEngines:
    """All engines at once."""
    reason: str | None
    try:
        files = _files_of(bundle, backend)
        if files is not None:
            built = {name: backend.load_engine(name, files) for name in bundle.manifest.graphs}
            return LoadedEngines(built, True, None)
        reason = None
    except BundleError as error:
        reason = str(error)
    except KeyError as error:  # of `files`
        reason = f"{RECORD} does not list {error}"
    engines = {name: backend.load_graph(bundle.graph(name)) for name in bundle.manifest.graphs}
    return LoadedEngines(engines, False, reason)


def is_up_to_date(bundle: Bundle, backend: Backend) -> bool:
    """Whether the engines of this machine are there, whole, and made from these graphs."""
    try:
        return _files_of(bundle, backend) is not None
    except BundleError:
        return False


def build_engines(bundle: Bundle, backend: Backend) -> Path:
    """Makes the engines of every graph, all or nothing, and returns their directory."""
    home = bundle.root / ENGINES
    target = home / backend.target
    try:
        home.mkdir(exist_ok=True)
        with _locked(home):
            for left in home.glob(f"{_STAGE}*"):
                shutil.rmtree(left)
            stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=home))
            try:
                _write(stage, bundle, backend)
                stage.chmod(0o755)  # mkdtemp makes it private
                if target.exists():
                    # A directory cannot be renamed onto a full one. A kill between the two leaves no
                    # engine, which is a state that sample knows.
                    target.rename(home / f"{stage.name}-old")
                stage.rename(target)
            finally:
                for left in home.glob(f"{_STAGE}*"):
                    shutil.rmtree(left)
    except OSError as error:
        raise BundleError(f"engines cannot be written to {home}: {error.strerror}") from None
    return target


def _write(stage: Path, bundle: Bundle, backend: Backend) -> None:
    names = [file for graph in bundle.manifest.graphs for file in backend.build_engine(bundle.graph(graph), stage)]
    files = {}
    for name in names:
        data = (stage / name).read_bytes()
        files[name] = FileRecord(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    record = EngineRecord(key=backend.engine_key(), graphs_sha256=_graphs_sha256(bundle), files=files)
    encoded = msgspec.json.encode(record)
    (stage / RECORD).write_bytes(encoded)
    (stage / f"{RECORD}.sha256").write_text(f"{hashlib.sha256(encoded).hexdigest()}  {RECORD}\n")


def _files_of(bundle: Bundle, backend: Backend) -> dict[str, memoryview] | None:
    """The hashed files of this machine's engines; None if there are none, BundleError if they are not to be run."""
    if not (bundle.root / ENGINES / backend.target).exists():
        return None
    root = bundle.root.resolve()
    for directory in (root / ENGINES, root / ENGINES / backend.target):
        if directory.is_symlink():
            raise BundleError(f"{directory} is a link")
    directory = root / ENGINES / backend.target
    try:
        record = msgspec.json.decode(read_sealed(directory, RECORD)[0], type=EngineRecord)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{RECORD} does not follow the schema: {error}") from None
    changed = sorted(name for name, value in backend.engine_key().items() if record.key.get(name) != value)
    if changed:
        raise BundleError(f"made for another {' and '.join(changed)}")
    if record.key != backend.engine_key() or record.graphs_sha256 != _graphs_sha256(bundle):
        raise BundleError("made from other graphs")
    files: dict[str, memoryview] = {}
    for file, view, problem in hashed_files(directory, record.files):
        if problem is not None:
            raise BundleError(problem)
        files[file] = view
    return files


def _graphs_sha256(bundle: Bundle) -> dict[str, dict[str, str]]:
    return {
        name: {file: bundle.manifest.files[file].sha256 for file in (graph.file, graph.weights)}
        for name, graph in bundle.manifest.graphs.items()
    }


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the exclusive lock of a directory; waits for another build of the same bundle."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
