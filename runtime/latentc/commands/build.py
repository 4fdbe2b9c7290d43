"""latentc build: makes engines for this machine, kept in the bundle."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.backends import open_backend
from latentc.backends.options import AUTOMATIC, EngineOptions, num_bytes_of, size_of
from latentc.bundle import open_bundle
from latentc.engines import build_engines, is_up_to_date
from latentc.errors import RequestError
from latentc.progress import Stopwatch


@dataclass(frozen=True)
class Options:
    """The flags of the command, as in arguments.py."""

    bundle: Path
    backend: str
    threads: int
    force: bool
    prologue: str
    batch: int | None
    size: list[str]
    workspace: str | None
    opt_level: int | None
    version_compatible: bool
    hardware_compatible: bool
    strip_weights: bool
    weight_streaming: str | None
    json: bool


class Report(msgspec.Struct, frozen=True):
    """What --json prints."""

    engines: str
    built: bool
    backend: str
    model_hash: str
    timings_ms: dict[str, float]


def run(options: Options) -> None:
    """Builds what is not up to date, and says what it did."""
    stopwatch = Stopwatch()
    if options.threads < 0:
        raise RequestError(f"--threads {options.threads} is out of range; give 1 or more")
    engine_options = _engine_options(options)
    backend = open_backend(options.backend, options.threads, engine_options)
    bundle = open_bundle(options.bundle)
    stopwatch.lap("open")
    directory = bundle.root / "engines" / backend.target
    wanted = options.force or not is_up_to_date(bundle, backend)
    if wanted:
        directory = build_engines(bundle, backend, options.force)
    stopwatch.lap("build")
    report = Report(str(directory), wanted, backend.name, bundle.model_hash, stopwatch.timings_ms())
    if options.json:
        print(msgspec.json.encode(report).decode())
    elif wanted:
        print(f"{directory}: built with {backend.name} in {report.timings_ms['build']:.0f} ms")
    else:
        print(f"{directory}: up to date; --force builds again")


def _engine_options(options: Options) -> EngineOptions:
    """The flags as numbers, each one checked."""
    if options.opt_level is not None and not 0 <= options.opt_level <= 5:
        raise RequestError(f"--opt-level {options.opt_level} is out of range; give 0 to 5")
    streaming = None
    if options.weight_streaming is not None:
        automatic = options.weight_streaming == "auto"
        streaming = AUTOMATIC if automatic else num_bytes_of("--weight-streaming", options.weight_streaming)
    return EngineOptions(
        workspace=None if options.workspace is None else num_bytes_of("--workspace", options.workspace),
        opt_level=options.opt_level,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        strip_weights=options.strip_weights,
        weight_streaming=streaming,
        batch=options.batch,
        sizes=tuple(size_of(text) for text in options.size),
        prologue=options.prologue,
    )
