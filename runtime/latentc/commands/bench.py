"""latentc bench: what a request costs by stage, and which share of the machine's ceilings the step reaches."""

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentc.backends import open_backend, resolve_backend
from latentc.bench.ceilings import Ceilings, measured_ceilings
from latentc.bench.requests import Timings, timed_requests
from latentc.bundle import ENGINES, open_bundle
from latentc.engines import load_engines
from latentc.errors import BackendError, RequestError
from latentc.request import MAX_IMAGES, Asked, Request, resolve
from latentc.sampler import CACHED
from latentc.schema import LabelConditioning, Manifest
from latentc.session import Session

_BATCHES = "1,2,4,8"
_PROMPT = "a photograph of a red house by the sea"


@dataclass(frozen=True)
class Options:
    """The flags of the command, as in arguments.py."""

    bundle: Path
    backend: str
    threads: int
    prologue: str
    steps: int | None
    cache: str | None
    batch: str | None
    repeat: int
    width: int | None
    height: int | None
    json: bool


class Share(msgspec.Struct, frozen=True):
    """What a step moves and computes at least, and which share of each ceiling that is at the median."""

    flops: float
    bytes: float
    of_matrix_rate: float
    of_copy_rate: float

    @property
    def best(self) -> float:
        """The roofline's: of the ceiling that bounds the step."""
        return max(self.of_matrix_rate, self.of_copy_rate)


class Batch(msgspec.Struct, frozen=True):
    """One batch size."""

    timings: Timings
    share: Share | None  # not known for sizes other than the bundle's own


class Report(msgspec.Struct, frozen=True):
    """What --json prints."""

    bundle: str
    model: str
    model_hash: str
    precision: str
    backend: str
    machine: dict[str, str]
    engines: bool
    solver: str
    steps: int
    calls: int
    cache: str | None
    cached_calls: int
    cfg_scale: float
    width: int
    height: int
    ceilings: Ceilings
    batches: list[Batch]
    engine_bytes: int
    memory_bytes: int


def run(options: Options) -> None:
    """Measures the ceilings, then each batch size, and prints a table or one document."""
    batches = _batches(options.batch or _BATCHES)
    if options.repeat < 1:
        raise RequestError(f"--repeat {options.repeat} is out of range; give 1 or more")
    if options.threads < 0:
        raise RequestError(f"--threads {options.threads} is out of range; give 1 or more")
    backend = open_backend(resolve_backend(options.backend, options.bundle), options.threads)
    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    requests = [_request(manifest, options, batch) for batch in batches]
    prologue = open_backend("onnxruntime", options.threads) if options.prologue == "cpu" else None
    without = frozenset({CACHED}) if options.cache is None else frozenset()
    loaded = load_engines(bundle, backend, prologue=prologue, without=without)
    session = Session(bundle, backend, loaded.engines, prologue=loaded.prologue)
    key = backend.engine_key()
    ceilings = measured_ceilings(backend, "gpu" in key, manifest.precision == "fp16")
    measured: list[Batch] = []
    for request in requests:
        try:
            timings = timed_requests(session, request, options.repeat)
        except BackendError as error:
            if options.batch is not None or not measured:
                raise
            print(f"latentc: batch {request.count} was left out: {error}", file=sys.stderr)
            break
        measured.append(Batch(timings, _share(manifest, request, timings, ceilings)))
    directory = bundle.root / ENGINES / backend.target
    engine_bytes = sum(path.stat().st_size for path in directory.iterdir()) if loaded.built else 0
    first = requests[0]
    report = Report(
        bundle=str(options.bundle),
        model=manifest.name,
        model_hash=bundle.model_hash,
        precision=manifest.precision,
        backend=backend.name,
        machine=key,
        engines=loaded.built,
        solver=first.table.solver,
        steps=first.table.steps,
        calls=first.table.calls,
        cache=first.cache,
        cached_calls=len(first.cached_calls(first.table.calls)),
        cfg_scale=first.cfg_scale,
        width=first.width,
        height=first.height,
        ceilings=ceilings,
        batches=measured,
        engine_bytes=engine_bytes,
        memory_bytes=backend.memory_bytes(),
    )
    print(msgspec.json.encode(report).decode() if options.json else "\n".join(_lines(report)))


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--batch {text} is no list of numbers; give one such as 1,2,4,8") from None
    if not all(1 <= batch <= MAX_IMAGES for batch in batches):
        raise RequestError(f"--batch {text} is out of range; give 1 to {MAX_IMAGES}")
    return batches


def _request(manifest: Manifest, options: Options, batch: int) -> Request:
    """The first label, or a prompt; everything else is the bundle's default."""
    by_label = isinstance(manifest.conditioning, LabelConditioning)
    label = next(iter(sorted(manifest.conditioning.labels))) if by_label else None  # type: ignore[union-attr]
    asked = Asked(
        label=label,
        prompts=() if by_label else (_PROMPT,),
        width=options.width,
        height=options.height,
        steps=options.steps,
        cache=options.cache,
        count=batch,
    )
    return resolve(manifest, asked)


def _share(manifest: Manifest, request: Request, timings: Timings, ceilings: Ceilings) -> Share | None:
    """From the manifest's FLOPs (batch 1, one branch, the default size) and weights, which each step reads once."""
    if (request.width, request.height) != (manifest.image.width, manifest.image.height):
        return None
    graphs, latent = manifest.graphs, manifest.latent
    branches = 2 if request.cfg_scale > 1 else 1
    # Of a typical step: the median is compared with it, and that is a cached one where more than half of them are.
    cached = 2 * len(request.cached_calls(request.table.calls)) > request.table.calls
    graph = graphs["denoise_cached" if cached else "denoise"]
    flops = float(graph.flops * request.count * branches)
    slots = 1 + request.table.calls + request.table.noise_draws
    history = 4 * slots * request.count * latent.channels * latent.height * latent.width
    num_bytes = float(graph.weight_bytes + history)
    seconds = timings.step_ms.p50 / 1e3
    return Share(
        flops=flops,
        bytes=num_bytes,
        of_matrix_rate=flops / seconds / ceilings.matrix_flops_per_s,
        of_copy_rate=num_bytes / seconds / ceilings.copy_bytes_per_s,
    )


def _lines(report: Report) -> list[str]:
    ceilings = report.ceilings
    lines = [
        f"{report.model} {report.precision} ({report.model_hash}), {report.width}x{report.height}, {report.solver} "
        f"{report.steps} steps, cfg {report.cfg_scale:g}"
        + ("" if report.cache is None else f", cache {report.cache} ({report.cached_calls} of {report.calls} calls)"),
        f"{report.backend}, {'built engines' if report.engines else 'graphs'}, "
        + ", ".join(
            report.machine[name] for name in ("gpu", "compute_capability", "machine") if name in report.machine
        ),
        f"ceilings: {ceilings.matrix_flops_per_s / 1e9:.0f} GFLOP/s ({ceilings.dtype} product of "
        f"{ceilings.matrix_side}), {ceilings.copy_bytes_per_s / 1e9:.1f} GB/s",
        "",
        f"{'batch':>5}  {'prologue':>8}  {'step p50':>8}  {'p90':>8}  {'p99':>8}  {'decode':>8}  {'request p50':>11}  "
        f"{'p90':>8}  {'p99':>8}  {'images/s':>8}  {'of matrix':>9}  {'of copy':>7}   (ms)",
    ]
    for batch in report.batches:
        t, share = batch.timings, batch.share
        shares = ("-", "-") if share is None else (f"{share.of_matrix_rate:.0%}", f"{share.of_copy_rate:.0%}")
        lines.append(
            f"{t.batch:>5}  {t.prologue_ms.p50:>8.2f}  {t.step_ms.p50:>8.2f}  {t.step_ms.p90:>8.2f}  "
            f"{t.step_ms.p99:>8.2f}  {t.decode_ms.p50:>8.2f}  {t.request_ms.p50:>11.1f}  {t.request_ms.p90:>8.1f}  "
            f"{t.request_ms.p99:>8.1f}  {t.images_per_s:>8.2f}  {shares[0]:>9}  {shares[1]:>7}"
        )
    engines = f"engines {report.engine_bytes / 1e6:.1f} MB, " if report.engines else ""
    lines += ["", f"{engines}memory {report.memory_bytes / 1e6:.0f} MB"]
    return lines
