"""Opens a bundle: every file is mapped and hashed before any parser sees it.

What is hashed is what is used: a file is opened once, without following links, mapped read-only, and
the mapping that the hash was taken of is the one that `Bundle.view` hands out. A file that is replaced
afterwards (by rename, as every writer of ours does) changes nothing for a running process; one that is
overwritten in place does, as with every mapped file.

The chain: manifest.json.sha256 holds the hash of manifest.json, which holds the hash and size of every
other file but engines/. It finds accidents, in any bit; it is no signature, and a bundle from a
stranger is as trustworthy as the stranger. What a hostile bundle still cannot do is make this module
open a path outside of it.
"""

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from latentc.errors import BundleError
from latentc.manifest_check import problems
from latentc.pages import sha256_of
from latentc.schema import SCHEMA_VERSION, FileRecord, LabelConditioning, Manifest, Parity

MANIFEST = "manifest.json"
PARITY = "parity.json"
ENGINES = "engines"
_DENOISERS = ("denoise", "denoise_cached")

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_+=@-][A-Za-z0-9_.+=@-]*(/[A-Za-z0-9_+=@-][A-Za-z0-9_.+=@-]*)*")
_SEAL = re.compile(rb"([0-9a-f]{64})  ([!-~]+)\n")


@dataclass(frozen=True)
class GraphBytes:
    """One ONNX model, and the external data file that it names; both already hashed."""

    name: str
    model: memoryview
    weights_name: str  # the file name by which the model calls its external data
    weights: memoryview
    # Of the model, for a parser that opens the weights beside it by itself.
    path: Path | None = field(default=None, kw_only=True)
    # Of one picture at the bundle's defaults: the guidance branches of a denoiser; 0 where rows cannot be run apart.
    rows: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class Bundle:
    """An open bundle: its manifest, and its files as verified bytes."""

    root: Path
    manifest: Manifest
    manifest_sha256: str
    views: dict[str, memoryview]

    @property
    def model_hash(self) -> str:
        """Ten hex digits that name this bundle in the pictures that it draws."""
        return self.manifest_sha256[:10]

    def view(self, file: str) -> memoryview:
        """The bytes of a file that the manifest lists, read-only, as they were hashed."""
        if file not in self.views:
            raise BundleError(f"{self.root}: the manifest refers to {file}, which it does not list")
        return self.views[file]

    def graph(self, name: str) -> GraphBytes:
        """The model and weights of the graph `name`."""
        graph = self.manifest.graphs[name]
        weights_name = graph.weights.rpartition("/")[2]
        apart = name in _DENOISERS and self.manifest.guided_channels == self.manifest.latent.channels
        return GraphBytes(
            name,
            self.view(graph.file),
            weights_name,
            self.view(graph.weights),
            path=self.root / graph.file,
            rows=(2 if self.manifest.defaults.cfg_scale > 1 else 1) if apart else 0,
        )

    def tokenizers(self) -> dict[str, memoryview]:
        """The tokenizer files that the manifest names."""
        conditioning = self.manifest.conditioning
        encoders = () if isinstance(conditioning, LabelConditioning) else conditioning.encoders
        return {encoder.tokenizer: self.view(encoder.tokenizer) for encoder in encoders}

    def parity(self) -> Parity:
        """The parity report that the export stored."""
        try:
            return msgspec.json.decode(self.view(PARITY), type=Parity)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BundleError(f"{self.root}: {PARITY} does not follow the schema: {error}") from None


def open_bundle(root: Path) -> Bundle:
    """Opens and hashes the whole bundle; raises BundleError, with one line, at the first thing wrong."""
    manifest, digest = manifest_of(root)
    views: dict[str, memoryview] = {}
    for file, view, problem in hashed_files(root.resolve(), manifest.files):
        if problem is not None:
            raise BundleError(f"{root}: {problem}; export the bundle again, or copy it again")
        views[file] = view
    return Bundle(root, manifest, digest, views)


def manifest_of(root: Path) -> tuple[Manifest, str]:
    """The manifest, hashed before it is parsed, and its sha256; the other files are not looked at."""
    if not root.is_dir():
        raise BundleError(f"{root} is no {'directory' if root.exists() else 'bundle: it does not exist'}")
    if not os.path.lexists(root / MANIFEST):
        raise BundleError(f"{root} is no bundle: it has no {MANIFEST}; python -m export makes bundles")
    data, digest = read_sealed(root.resolve(), MANIFEST)
    manifest = _manifest_from_json(data, root)
    for file in manifest.files:
        if not _PLAIN_PATH.fullmatch(file) or file.split("/")[0] == ENGINES or file.startswith(MANIFEST):
            raise BundleError(f"{root}: the manifest lists {file!r}, which is no plain path inside a bundle")
    problem = next(problems(manifest, PARITY), None)
    if problem is not None:
        raise BundleError(f"{root}: the manifest {problem}")
    return manifest, digest


def read_sealed(directory: Path, file: str) -> tuple[memoryview, str]:
    """The bytes and the sha256 of `file`, checked against `file`.sha256 beside it (sha256sum's format)."""
    seal = _SEAL.fullmatch(bytes(map_file(directory, f"{file}.sha256")))
    if seal is None or seal[2].decode() != file:
        raise BundleError(f"{directory / file}.sha256 is damaged: expected one line, '<sha256>  {file}'")
    data = map_file(directory, file)
    digest = hashlib.sha256(data).hexdigest()
    if digest != seal[1].decode():
        raise BundleError(f"{directory / file} is damaged: its sha256 is {digest}, expected {seal[1].decode()}")
    return data, digest


def hashed_files(root: Path, files: dict[str, FileRecord]) -> Iterator[tuple[str, memoryview, str | None]]:
    """Each file with its bytes, and the one line that says what is wrong with it, if anything is.

    Maps and hashes in threads (hashing releases the interpreter lock), yields in the order of `files`. What was hashed
    does not stay in memory: a bundle may be larger than it.
    """

    def check(item: tuple[str, FileRecord]) -> tuple[str, memoryview, str | None]:
        file, record = item
        try:
            view = map_file(root, file)
        except BundleError as error:
            return file, memoryview(b""), str(error)
        if len(view) != record.num_bytes:
            return file, view, f"{file} is damaged: it has {len(view)} bytes, expected {record.num_bytes}"
        digest = sha256_of(view)
        wrong = f"{file} is damaged: its sha256 is {digest}, expected {record.sha256}"
        return file, view, None if digest == record.sha256 else wrong

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(check, files.items())


def map_file(root: Path, file: str) -> memoryview:
    """Maps a regular file inside `root` read-only, following no link on the way; BundleError if it is none."""
    if not _PLAIN_PATH.fullmatch(file):
        raise BundleError(f"{file!r} is no plain path inside a bundle")
    path = root / file
    parents = [root / parent for parent in list(Path(file).parents)[:-1]]
    if path.is_symlink() or any(parent.is_symlink() for parent in parents):
        raise BundleError(f"{file} is a link; a bundle holds real files only")
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{file} is no regular file")
        if status.st_size == 0:
            return memoryview(b"")  # an empty file cannot be mapped
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(handle)


class _Version(msgspec.Struct):
    schema_version: int


def _manifest_from_json(data: memoryview, root: Path) -> Manifest:
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            todo = "install a newer latentc" if version > SCHEMA_VERSION else "export the bundle again"
            raise BundleError(f"{root} has schema {version}; this latentc reads schema {SCHEMA_VERSION}: {todo}")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{root}: {MANIFEST} does not follow the schema: {error}") from None
