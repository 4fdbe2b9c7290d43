"""latentc verify: every hash, then the numbers: graphs and engines against torch's stored outputs."""

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.backends import open_backend, resolve_backend
from latentc.backends.protocol import Backend
from latentc.bundle import Bundle, hashed_files, manifest_of
from latentc.errors import BackendError, BundleError, ParityError, RequestError
from latentc.memory import Memory
from latentc.schema import Figure
from latentc.verification import measured


@dataclass(frozen=True)
class Options:
    """The flags of the command, as in arguments.py."""

    bundle: Path
    backend: str
    threads: int
    prologue: str
    memory: Memory
    json: bool


class Report(msgspec.Struct, frozen=True):
    """What --json prints."""

    bundle: str
    model_hash: str
    files: dict[str, bool]  # whether each one matches its hash
    unlisted: list[str]  # files that no hash covers, and that nothing reads
    backend: str
    figures: list[Figure]
    passed: bool


def run(options: Options) -> None:
    """Checks all hashes, then all figures, and names everything that fails."""
    if options.threads < 0:
        raise RequestError(f"--threads {options.threads} is out of range; give 1 or more")
    bundle, unlisted = _hashed(options)
    name = resolve_backend(options.backend, options.bundle)
    backend = open_backend(name, options.threads)
    graphs = backend if name == "onnxruntime" else _graphs_backend(options)
    figures: list[Figure] = []
    for figure in measured(bundle, backend, options.memory, graphs, options.prologue):
        figures.append(figure)
        _say(options, f"{'ok' if figure.holds else 'FAIL':<6}{_words(figure)}")
    failed = [figure for figure in figures if not figure.holds]
    if options.json:
        files = dict.fromkeys(bundle.manifest.files, True)
        report = Report(str(options.bundle), bundle.model_hash, files, unlisted, backend.name, figures, not failed)
        print(msgspec.json.encode(report).decode())
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ParityError(f"{options.bundle}: {_words(failed[0])}{more}")


def _graphs_backend(options: Options) -> Backend | None:
    """ONNX Runtime, which a device need not have (there is none that is new enough for Python 3.10)."""
    try:
        return open_backend("onnxruntime", options.threads)
    except (BackendError, ImportError) as error:
        _say(options, f"note  engines are compared with torch's outputs alone, not with the graphs: {error}")
        return None


def _hashed(options: Options) -> tuple[Bundle, list[str]]:
    """The bundle, with all its files hashed; each damaged one is named before the error."""
    manifest, digest = manifest_of(options.bundle)
    views: dict[str, memoryview] = {}
    problems: list[str] = []
    for file, view, problem in hashed_files(options.bundle.resolve(), manifest.files):
        views[file] = view
        _say(options, f"{'ok' if problem is None else 'FAIL':<6}{file if problem is None else problem}")
        problems += [] if problem is None else [problem]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BundleError(f"{options.bundle}: {problems[0]}{more}; export the bundle again, or copy it again")
    here = {path.relative_to(options.bundle).as_posix() for path in options.bundle.rglob("*") if not path.is_dir()}
    listed = {*manifest.files, "manifest.json", "manifest.json.sha256"}
    unlisted = sorted(file for file in here - listed if not file.startswith("engines/"))
    for file in unlisted:
        _say(options, f"note  {file} is not in the manifest; nothing reads it")
    return Bundle(options.bundle, manifest, digest, views), unlisted


def _words(figure: Figure) -> str:
    """One comparison in words: tensor, measure, value, bound, and what it was compared with."""
    relation = "<=" if figure.measure == "relative_l2" else ">="
    held = relation if figure.holds else f"is not {relation}"
    return f"{figure.tensor}: {figure.measure} {figure.value:.3g} {held} {figure.bound:g} ({figure.against})"


def _say(options: Options, line: str) -> None:
    """Prints for a person; with --json stdout holds the document alone."""
    if not options.json:
        print(line)
        sys.stdout.flush()
