"""latentc sample: draws pictures from a bundle."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.backends import open_backend, resolve_backend
from latentc.bundle import open_bundle
from latentc.commands.drawing import Report, draw, text_of
from latentc.commands.job import Job, Wanted, job_of
from latentc.engines import load_engines
from latentc.errors import RequestError
from latentc.memory import Memory
from latentc.progress import Stopwatch
from latentc.session import Session


@dataclass(frozen=True)
class Options:
    """The flags of the command, as in arguments.py."""

    bundle: Path
    prompt: list[str]
    label: str | None
    negative_prompt: list[str]
    width: int | None
    height: int | None
    steps: int | None
    solver: str | None
    cfg_scale: float | None
    guidance: float | None
    seed: int | None
    batch: int | None
    output: Path
    separate: bool
    latents: Path | None
    init_image: Path | None
    strength: float | None
    tile: int | None
    no_metadata: bool
    stdin: bool
    backend: str
    threads: int
    prologue: str
    memory: Memory
    json: bool

    @property
    def wanted(self) -> Wanted:
        """What one picture, or one batch of them, was asked to be."""
        return Wanted(
            output=self.output,
            prompts=tuple(self.prompt),
            negative_prompts=tuple(self.negative_prompt),
            label=self.label,
            width=self.width,
            height=self.height,
            steps=self.steps,
            solver=self.solver,
            cfg_scale=self.cfg_scale,
            guidance=self.guidance,
            seed=self.seed,
            batch=self.batch,
            separate=self.separate,
            latents=self.latents,
            init_image=self.init_image,
            strength=self.strength,
            tile=self.tile,
            no_metadata=self.no_metadata,
        )


def run(options: Options) -> None:
    """Opens, resolves, loads, loops, decodes, writes, reports; with --stdin from the resolving on for each line."""
    if options.threads < 0:
        raise RequestError(f"--threads {options.threads} is out of range; give 1 or more")
    stopwatch = Stopwatch()
    if options.stdin:
        from latentc.commands.serve_lines import serve  # a single picture need not pay for it

        if options.wanted != Wanted(output=Path("out.png")):
            raise RequestError("--stdin takes what to draw from its lines; leave such flags away (docs/low-latency.md)")
        session, built, _ = _opened(options, None, stopwatch)
        serve(session, built, options.memory)
        return
    session, built, job = _opened(options, options.wanted, stopwatch)
    assert job is not None
    report = draw(session, job, stopwatch, built, options.memory, watched=True)
    for notice in report.notices:
        print(f"latentc: {notice}", file=sys.stderr)
    print(msgspec.json.encode(report).decode() if options.json else _line(report))


def _opened(options: Options, wanted: Wanted | None, stopwatch: Stopwatch) -> tuple[Session, bool, Job | None]:
    """The loaded session, whether built engines run in it, and the request, which is looked at before any loading."""
    backend_name = resolve_backend(options.backend, options.bundle)
    with ThreadPoolExecutor(1) as pool:
        # Importing a backend takes as long as hashing a bundle, and both mostly run outside the interpreter.
        opening = pool.submit(open_backend, backend_name, options.threads)
        bundle = open_bundle(options.bundle)
        job = None if wanted is None else job_of(bundle, wanted)
        stopwatch.lap("open")
        backend = opening.result()
    prologue = open_backend("onnxruntime", options.threads) if options.prologue == "cpu" else None
    loaded = load_engines(bundle, backend, options.memory, prologue)
    if loaded.reason is not None:
        todo = f"; latentc build {options.bundle} renews them" if options.memory == "normal" else ""
        print(f"latentc: the built engines are not used ({loaded.reason}){todo}", file=sys.stderr)
    stopwatch.lap("load")
    return Session(bundle, backend, loaded.engines, prologue=loaded.prologue), loaded.built, job


def _line(report: Report) -> str:
    where = report.images[0] if len(report.images) == 1 else f"{report.images[0]} … {report.images[-1]}"
    guidance = "" if report.guidance is None else f", guidance {report.guidance:g}"
    text = text_of(report.prompts, None) if report.prompts else report.label
    return (
        f"{where}: {text[:60]}, {report.width}x{report.height}, {report.solver} {report.steps} steps, "
        f"cfg {report.cfg_scale:g}{guidance}, seed {report.seed}, {report.timings_ms['total']:.0f} ms"
    )
