"""latentc build: makes engines for this machine, kept in the bundle."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.backends import open_backend
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
    backend = open_backend(options.backend, options.threads)
    bundle = open_bundle(options.bundle)
    stopwatch.lap("open")
    directory = bundle.root / "engines" / backend.target
    wanted = options.force or not is_up_to_date(bundle, backend)
    if wanted:
        directory = build_engines(bundle, backend)
    stopwatch.lap("build")
    report = Report(str(directory), wanted, backend.name, bundle.model_hash, stopwatch.timings_ms())
    if options.json:
        print(msgspec.json.encode(report).decode())
    elif wanted:
        print(f"{directory}: built with {backend.name} in {report.timings_ms['build']:.0f} ms")
    else:
        print(f"{directory}: up to date; --force builds again")
