"""latentc sample: draws pictures from a bundle."""

import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from latentc import __version__
from latentc.backends import open_backend, resolve_backend
from latentc.bundle import Bundle, open_bundle
from latentc.engines import load_engines
from latentc.errors import RequestError
from latentc.init_image import pixels_from_file
from latentc.latents import latents_from_file
from latentc.memory import Memory
from latentc.noise import MAX_SEED
from latentc.picture import grid, output_paths, parameters_text, quantise, write_png
from latentc.progress import ProgressBar, Stopwatch
from latentc.request import Asked, Request, resolve
from latentc.sampler import Sampling
from latentc.session import trajectory_of_request
from latentc.trajectory import latent_shape


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
    no_metadata: bool
    backend: str
    threads: int
    prologue: str
    memory: Memory
    json: bool


class Report(msgspec.Struct, frozen=True):
    """What --json prints."""

    images: list[str]
    seed: int
    steps: int
    solver: str
    cfg_scale: float
    guidance: float | None
    label: str
    labels: tuple[int, ...]
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...] | None
    notices: list[str]  # what was cut off the prompts
    width: int
    height: int
    model: str
    model_hash: str
    backend: str
    engines: bool  # whether built engines ran, not the graphs
    memory: Memory
    timings_ms: dict[str, float]


def run(options: Options) -> None:
    """Opens, resolves, loads, loops, decodes, writes, reports."""
    stopwatch = Stopwatch()
    backend_name = resolve_backend(options.backend, options.bundle)
    if options.threads < 0:
        raise RequestError(f"--threads {options.threads} is out of range; give 1 or more")
    with ThreadPoolExecutor(1) as pool:
        # Importing a backend takes as long as hashing a bundle, and both mostly run outside the interpreter.
        opening = pool.submit(open_backend, backend_name, options.threads)
        bundle = open_bundle(options.bundle)
        request, first = _request(bundle, options)
        pixels = None
        if options.init_image is not None:
            pixels = pixels_from_file(options.init_image, request.width, request.height)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        if not 0 <= seed <= MAX_SEED:
            raise RequestError(f"-s {seed} is out of range; give 0 to {MAX_SEED}")
        paths = output_paths(options.output, request.count, options.separate)
        stopwatch.lap("open")
        backend = opening.result()
    prologue = open_backend("onnxruntime", options.threads) if options.prologue == "cpu" else None
    loaded = load_engines(bundle, backend, options.memory, prologue)
    if loaded.reason is not None:
        todo = f"; latentc build {options.bundle} renews them" if options.memory == "normal" else ""
        print(f"latentc: the built engines are not used ({loaded.reason}){todo}", file=sys.stderr)
    stopwatch.lap("load")

    trajectory = trajectory_of_request(bundle, request, seed, first, pixels)
    notices = list(dict.fromkeys(notice for batch in trajectory.texts for notice in batch.notices))
    for notice in notices:
        print(f"latentc: {notice}", file=sys.stderr)
    sampling = Sampling(backend, loaded.engines, bundle.manifest, trajectory, prologue=loaded.prologue)
    stopwatch.lap("prepare")
    begun = backend.now()
    bar = ProgressBar("denoise", sampling.calls)
    for call in sampling.steps():
        bar.update(call)
    denoised = backend.now()
    stopwatch.lap("denoise")
    drawn = quantise(sampling.decode())
    stopwatch.lap("decode")
    stopwatch.correct("denoise", "decode", denoised.ms_since(begun))  # a GPU's steps return before they are done

    pictures = list(drawn) if options.separate else [grid(drawn)]
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
        guidance=request.guidance,
        label=request.label,
        labels=request.labels,
        prompts=request.prompts,
        negative_prompts=request.negative_prompts,
        notices=notices,
        width=request.width,
        height=request.height,
        model=bundle.manifest.name,
        model_hash=bundle.model_hash,
        backend=backend.name,
        engines=loaded.built,
        memory=options.memory,
        timings_ms=stopwatch.timings_ms(),
    )
    print(msgspec.json.encode(report).decode() if options.json else _line(report))


def _request(bundle: Bundle, options: Options) -> tuple[Request, npt.NDArray[np.float32] | None]:
    """The resolved request, and the initial noise if a file gives it."""
    manifest = bundle.manifest
    asked = Asked(
        label=options.label,
        prompts=options.prompt,
        negative_prompts=options.negative_prompt,
        width=options.width,
        height=options.height,
        steps=options.steps,
        solver=options.solver,
        cfg_scale=options.cfg_scale,
        guidance=options.guidance,
        count=options.batch,
        strength=options.strength,
        init_image=options.init_image is not None,
    )
    if options.latents is None:
        return resolve(manifest, asked), None
    # Their size is the one that is asked for; how many they are decides the number of pictures.
    _, *shape = latent_shape(manifest, resolve(manifest, replace(asked, count=None)))
    first = latents_from_file(options.latents, (shape[0], shape[1], shape[2]))
    return resolve(manifest, asked, len(first)), first


def _parameters(bundle: Bundle, request: Request, seed: int, position: int | None) -> str:
    """The PNG's text; `position` is the picture's place in its batch, where each has a file of its own."""
    batch = {"Batch size": str(request.count)} if request.count > 1 else {}
    if request.count > 1 and position is not None:
        batch["Batch pos"] = str(position)
    return parameters_text(
        _text(request.texts, position),
        None if request.negative_prompts is None else _text(request.negative_prompts, position),
        {
            "Steps": str(request.table.steps),
            "Sampler": request.table.solver,
            "CFG scale": f"{request.cfg_scale:g}",
            **({} if request.guidance is None else {"Distilled CFG Scale": f"{request.guidance:g}"}),
            "Seed": str(seed),
            "Size": f"{request.width}x{request.height}",
            "Model hash": bundle.model_hash,
            "Model": bundle.manifest.name,
            **({} if request.skipped is None else {"Steps of the initial image": str(request.skipped)}),
            **batch,
            "Version": f"latentc {__version__}",
        },
    )


def _text(texts: tuple[str, ...], position: int | None) -> str:
    """The text of one picture, or of all of them in one grid."""
    return texts[position] if position is not None else " | ".join(dict.fromkeys(texts))


def _line(report: Report) -> str:
    where = report.images[0] if len(report.images) == 1 else f"{report.images[0]} … {report.images[-1]}"
    guidance = "" if report.guidance is None else f", guidance {report.guidance:g}"
    text = _text(report.prompts, None) if report.prompts else report.label
    return (
        f"{where}: {text[:60]}, {report.width}x{report.height}, {report.solver} {report.steps} steps, "
        f"cfg {report.cfg_scale:g}{guidance}, seed {report.seed}, {report.timings_ms['total']:.0f} ms"
    )
