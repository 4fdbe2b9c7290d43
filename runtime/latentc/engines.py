"""Engines kept in the bundle: BUNDLE/engines/TARGET/, made on the machine that runs them.

engine.json records what the engines were made from (the graphs' hashes) and for (the backend's key),
and the hash of every file beside it; engine.json.sha256 seals it as manifest.json.sha256 seals the
manifest. An engine whose record, key or hashes do not fit is not run: the graphs are, and one line says
why. Engines can always be made again, so they are not synced to the disk; what a power cut
leaves half-written does not have its hash.

A build stages beside its place and renames, under a lock that dies with its process: after a
kill there is the old engine or none, and what was staged is removed by the next build. Engines of graphs that have
not changed are taken over, not made again.
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

from latentc.backends import open_backend
from latentc.backends.protocol import Backend, Engine
from latentc.bundle import ENGINES, Bundle
from latentc.engine_record import (
    RECORD,
    EngineRecord,
    checked_files,
    files_of,
    graphs_sha256,
    is_current,
    record_of,
    reusable,
)
from latentc.errors import BackendError, BundleError
from latentc.memory import Memory
from latentc.schema import FileRecord
from latentc.stages import OneAtATime

LOOP = frozenset({"denoise", "denoise_cached", "decode", "encode"})  # all other graphs are the prologue's
_STAGE = ".stage-"


@dataclass(frozen=True)
class LoadedEngines:
    """Engines by graph name, and where they came from: `built` ones, or the graphs, perhaps for a `reason`."""

    engines: Mapping[str, Engine]
    built: bool
    reason: str | None
    prologue: Backend  # that of the engines of what runs before the loop


def load_engines(
    bundle: Bundle,
    backend: Backend,
    memory: Memory = "normal",
    prologue: Backend | None = None,
    without: frozenset[str] = frozenset(),
) -> LoadedEngines:
    """The built engines of this machine where they are whole and up to date, else engines from the graphs.

    `prologue` is the backend of what runs before the loop, where it is another one; engines that were built without
    these graphs say by that, that it is the CPU's. BackendError, with the command that builds them, where the backend
    runs built engines only and these cannot be run.

    Graphs of `without` are left away, which takes less memory where they will not be asked for.

    With `low` memory one at a time, from the graphs where the backend can run these: the weights of ONNX Runtime's
    built engines are copies in the precision that the processor computes in, which makes those of a half-precision
    model twice as large.
    """
    if memory == "low" and not backend.needs_engines:
        built = (bundle.root / ENGINES / backend.target).exists()
        reason = "--memory low reads the graphs' own weights" if built else None
        return _one_at_a_time(bundle, backend, prologue, None, reason)
    try:
        found, reason = files_of(bundle, backend), None
    except BundleError as error:
        found, reason = None, str(error)
    if found is not None:
        record, files = found
        if prologue is None and record.options.get("prologue") == "cpu":
            prologue = open_backend("onnxruntime")
        if memory == "low":
            return _one_at_a_time(bundle, backend, prologue, files, None)
        try:
            return LoadedEngines(_loaded(bundle, backend, prologue, files, without), True, None, prologue or backend)
        except KeyError as error:  # of `files`
            reason = f"{RECORD} does not list {error}"
    if backend.needs_engines:
        why = "has no engines for this machine" if reason is None else f"has engines that cannot be run: {reason}"
        family = backend.target.partition("-")[0]
        raise BackendError(f"{bundle.root} {why}; latentc build {bundle.root} --backend {family} makes them")
    return LoadedEngines(_loaded(bundle, backend, prologue, None, without), False, reason, prologue or backend)


def _loaded(
    bundle: Bundle,
    backend: Backend,
    prologue: Backend | None,
    files: dict[str, memoryview] | None,
    without: frozenset[str],
) -> dict[str, Engine]:
    """All engines at once, from built `files` or from the graphs."""
    names = [name for name in bundle.manifest.graphs if name not in without]
    return {name: _load(bundle, backend, prologue, files, name, mapped=False) for name in names}


def _one_at_a_time(
    bundle: Bundle,
    backend: Backend,
    prologue: Backend | None,
    files: dict[str, memoryview] | None,
    reason: str | None,
) -> LoadedEngines:
    def load(name: str) -> Engine:
        return _load(bundle, backend, prologue, files, name, mapped=True)

    engines = OneAtATime(tuple(bundle.manifest.graphs), load)
    return LoadedEngines(engines, files is not None, reason, prologue or backend)


def _load(
    bundle: Bundle,
    backend: Backend,
    prologue: Backend | None,
    files: dict[str, memoryview] | None,
    name: str,
    mapped: bool,
) -> Engine:
    """One engine, of the backend that it is for. KeyError where `files` lack it."""
    if prologue is not None and prologue is not backend and name not in LOOP:
        return prologue.load_graph(bundle.graph(name), mapped=mapped)
    if files is not None:
        return backend.load_engine(name, files, bundle.graph(name))
    return backend.load_graph(bundle.graph(name), mapped=mapped)


def is_up_to_date(bundle: Bundle, backend: Backend) -> bool:
    """Whether the engines of this machine are there, whole, made from these graphs, and as they are asked for now."""
    try:
        directory = bundle.root / ENGINES / backend.target
        if not directory.exists():
            return False
        record = record_of(directory)
        return is_current(record, backend) and bool(checked_files(bundle, directory, record))
    except BundleError:
        return False


def build_engines(bundle: Bundle, backend: Backend, force: bool = False) -> Path:
    """Makes the engines of every graph, all or nothing, and returns their directory.

    Those of graphs that have not changed are taken over, where making them takes minutes, unless `force`.
    """
    home = bundle.root / ENGINES
    target = home / backend.target
    try:
        home.mkdir(exist_ok=True)
        with _locked(home):
            for left in home.glob(f"{_STAGE}*"):
                shutil.rmtree(left)
            stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=home))
            try:
                _write(stage, bundle, backend, {} if force else reusable(bundle, backend))
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


def _write(stage: Path, bundle: Bundle, backend: Backend, old: Mapping[str, Mapping[str, memoryview]]) -> None:
    graphs = graphs_sha256(bundle)
    names: list[str] = []
    on_cpu = backend.build_options().get("prologue") == "cpu"
    for graph in bundle.manifest.graphs:
        if on_cpu and graph not in LOOP:
            continue
        kept = old.get(graph, {})
        for name, data in kept.items():
            (stage / name).write_bytes(data)
        names += list(kept) or backend.build_engine(bundle.graph(graph), stage, bundle.manifest)
    files = {}
    for name in names:
        with (stage / name).open("rb") as file:
            digest, size = hashlib.sha256(), 0
            while chunk := file.read(1 << 24):  # a plan may be as large as the memory
                digest.update(chunk)
                size += len(chunk)
        files[name] = FileRecord(sha256=digest.hexdigest(), num_bytes=size)
    record = EngineRecord(key=backend.engine_key(), graphs_sha256=graphs, files=files, options=backend.build_options())
    encoded = msgspec.json.encode(record)
    (stage / RECORD).write_bytes(encoded)
    (stage / f"{RECORD}.sha256").write_text(f"{hashlib.sha256(encoded).hexdigest()}  {RECORD}\n")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the exclusive lock of a directory; waits for another build of the same bundle."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
