"""latentc sample: draws pictures from a bundle."""

import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from latentc import __version__
from latentc.backends import open_backend, resolve_backend
from latentc.bundle import Bundle, open_bundle
from latentc.engines import load_engines
from latentc.errors import RequestError
from latentc.latents import latents_from_file
from latentc.noise import MAX_SEED
from latentc.picture import grid, output_paths, parameters_text, quantise, write_png
from latentc.progress import ProgressBar, Stopwatch
from latentc.request import Asked, Request, resolve
from latentc.sampler import Sampling
from latentc.table import table_from_bundle
from latentc.trajectory import noise_from_seed, trajectory_of_labels


@dataclass(frozen=True)
class Options:
    """The flags of the command, as in arguments.py."""

    bundle: Path
    prompt: str | None
    label: str | None
    negative_prompt: str | None
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
    no_metadata: bool
    backend: str
    threads: int
    json: bool


class Report(msgspec.Struct, frozen=True):
    """What --json prints."""

    images: list[str]
    seed: int
    steps: int
    solver: str
    cfg_scale: float
    label: str
    labels: tuple[int, ...]
    width: int
    height: int
    model: str
    model_hash: str
    backend: str
    engines: bool  # whether built engines ran, not the graphs
    timings_ms: dict[str, float]


def run(options: Options) -> None:
    """Opens, resolves, loads, loops, decodes, writes, reports."""
    stopwatch = Stopwatch()
    backend_name = resolve_backend(options.backend)
    if options.threads < 0:
        raise RequestError(f"--threads {options.threads} is out of range; give 1 or more")
    with ThreadPoolExecutor(1) as pool:
        # Importing a backend takes as long as hashing a bundle, and both mostly run outside the interpreter.
        opening = pool.submit(open_backend, backend_name, options.threads)
        bundle = open_bundle(options.bundle)
        request, first = _request(bundle, options)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        if not 0 <= seed <= MAX_SEED:
            raise RequestError(f"-s {seed} is out of range; give 0 to {MAX_SEED}")
        paths = output_paths(options.output, len(request.labels), options.separate)
        stopwatch.lap("open")
        backend = opening.result()
    loaded = load_engines(bundle, backend)
    if loaded.reason is not None:
        print(
            f"latentc: the built engines are not used ({loaded.reason}); latentc build {options.bundle} renews them",
            file=sys.stderr,
        )
    stopwatch.lap("load")

    manifest = bundle.manifest
    table = table_from_bundle(bundle, request.table)
    shape = (len(request.labels), manifest.latent.channels, manifest.latent.height, manifest.latent.width)
    noise = noise_from_seed(seed, shape, table.noise_draws, first)
    trajectory = trajectory_of_labels(table, noise, request.labels, manifest.conditioning.null_label, request.cfg_scale)
    sampling = Sampling(backend, loaded.engines, manifest, trajectory)
    stopwatch.lap("prepare")
    bar = ProgressBar("denoise", table.calls)
    for call in sampling.steps():
        bar.update(call)
    stopwatch.lap("denoise")
    pixels = quantise(sampling.decode())
    stopwatch.lap("decode")

    pictures = list(pixels) if options.separate else [grid(pixels)]
    for position, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
        text = _parameters(bundle, request, seed, position if options.separate else None)
        write_png(path, picture, None if options.no_metadata else text)
    stopwatch.lap("write")

    report = Report(
        images=[os.fsencode(path).decode(errors="replace") for path in paths],
        seed=seed,
        steps=request.table.steps,
        solver=request.table.solver,
        cfg_scale=request.cfg_scale,
        label=request.label,
        labels=request.labels,
        width=manifest.image.width,
        height=manifest.image.height,
        model=manifest.name,
        model_hash=bundle.model_hash,
        backend=backend.name,
        engines=loaded.built,
        timings_ms=stopwatch.timings_ms(),
    )
    print(msgspec.json.encode(report).decode() if options.json else _line(report))


def _request(bundle: Bundle, options: Options) -> tuple[Request, npt.NDArray[np.float32] | None]:
    """The resolved request, and the initial noise if a file gives it."""
    first = None if options.latents is None else latents_from_file(options.latents, bundle.manifest.latent)
    asked = Asked(
        label=options.label,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        steps=options.steps,
        solver=options.solver,
        cfg_scale=options.cfg_scale,
        guidance=options.guidance,
        count=options.batch,
    )
    return resolve(bundle.manifest, asked, None if first is None else len(first)), first


def _parameters(bundle: Bundle, request: Request, seed: int, position: int | None) -> str:
    """The PNG's text; `position` is the picture's place in its batch, where each has a file of its own."""
    count = len(request.labels)
    batch = {"Batch size": str(count)} if count > 1 else {}
    if count > 1 and position is not None:
        batch["Batch pos"] = str(position)
    return parameters_text(
        request.label,
        {
            "Steps": str(request.table.steps),
            "Sampler": request.table.solver,
            "CFG scale": f"{request.cfg_scale:g}",
            "Seed": str(seed),
            "Size": f"{bundle.manifest.image.width}x{bundle.manifest.image.height}",
            "Model hash": bundle.model_hash,
            "Model": bundle.manifest.name,
            **batch,
            "Version": f"latentc {__version__}",
        },
    )


def _line(report: Report) -> str:
    where = report.images[0] if len(report.images) == 1 else f"{report.images[0]} … {report.images[-1]}"
    return (
        f"{where}: {report.label}, {report.solver} {report.steps} steps, cfg {report.cfg_scale:g}, "
        f"seed {report.seed}, {report.timings_ms['total']:.0f} ms"
    )
