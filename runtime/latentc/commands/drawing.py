"""One job to PNG and report: what `latentc sample` and its --stdin have in common.

Whoever calls it opens the bundle and the backend, and says how errors are shown.
"""

import base64
import os

import msgspec

from latentc import __version__
from latentc.bundle import Bundle
from latentc.commands.job import Job
from latentc.memory import Memory
from latentc.picture import Pixels, grid, parameters_text, quantise, write_png
from latentc.png import png_from_pixels
from latentc.progress import ProgressBar, Stopwatch
from latentc.request import Request
from latentc.sampler import Sampling
from latentc.session import Session, trajectory_of_request


class Report(msgspec.Struct, frozen=True):
    """What --json prints."""

    images: list[str]  # paths, or PNG in base64 where no file was asked for
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
    tile: int | None  # pixels along a side of what was decoded at once; null: all
    timings_ms: dict[str, float]


def draw(session: Session, job: Job, stopwatch: Stopwatch, built: bool, memory: Memory, watched: bool) -> Report:
    """Draws and writes. `watched` shows the steps and times them; else a GPU may replay the loop as one."""
    bundle, backend, request = session.bundle, session.backend, job.request
    trajectory = trajectory_of_request(bundle, request, job.seed, job.first, job.pixels, session.tokenizers)
    sampling = session.sampling(trajectory)
    stopwatch.lap("prepare")
    if watched:
        drawn = _step_by_step(session, sampling, stopwatch)
    else:
        drawn = quantise(sampling.draw())
        stopwatch.lap("draw")
    images = _written(bundle, job, drawn)
    stopwatch.lap("write")
    return Report(
        images=images,
        seed=job.seed,
        steps=request.table.steps,
        solver=request.table.solver,
        cfg_scale=request.cfg_scale,
        guidance=request.guidance,
        label=request.label,
        labels=request.labels,
        prompts=request.prompts,
        negative_prompts=request.negative_prompts,
        notices=list(dict.fromkeys(notice for batch in trajectory.texts for notice in batch.notices)),
        width=request.width,
        height=request.height,
        model=bundle.manifest.name,
        model_hash=bundle.model_hash,
        backend=backend.name,
        engines=built,
        memory=memory,
        tile=request.tile,
        timings_ms=stopwatch.timings_ms(),
    )


def text_of(texts: tuple[str, ...], position: int | None) -> str:
    """The text of one picture, or of all of them in one grid."""
    return texts[position] if position is not None else " | ".join(dict.fromkeys(texts))


def _step_by_step(session: Session, sampling: Sampling, stopwatch: Stopwatch) -> Pixels:
    """uint8 [B, H, W, 3], with a progress bar, and the loop and the decoder timed apart."""
    begun = session.backend.now()
    bar = ProgressBar("denoise", sampling.calls)
    for call in sampling.steps():
        bar.update(call)
    denoised = session.backend.now()
    stopwatch.lap("denoise")
    drawn = quantise(sampling.decode())
    stopwatch.lap("decode")
    stopwatch.correct("denoise", "decode", denoised.ms_since(begun))  # a GPU's steps return before they are done
    return drawn


def _written(bundle: Bundle, job: Job, drawn: Pixels) -> list[str]:
    """Writes the files and returns their names, or returns the pictures themselves."""
    separate = job.wanted.separate
    images = []
    for position, picture in enumerate(drawn if separate else [grid(drawn)]):
        text = None
        if not job.wanted.no_metadata:
            text = _parameters(bundle, job.request, job.seed, position if separate else None)
        if job.paths is None:
            png = png_from_pixels(picture, {} if text is None else {"parameters": text})
            images.append(base64.b64encode(png).decode())
        else:
            write_png(job.paths[position], picture, text)
            images.append(os.fsencode(job.paths[position]).decode(errors="replace"))
    return images


def _parameters(bundle: Bundle, request: Request, seed: int, position: int | None) -> str:
    """The PNG's text; `position` is the picture's place in its batch, where each has a file of its own."""
    batch = {"Batch size": str(request.count)} if request.count > 1 else {}
    if request.count > 1 and position is not None:
        batch["Batch pos"] = str(position)
    return parameters_text(
        text_of(request.texts, position),
        None if request.negative_prompts is None else text_of(request.negative_prompts, position),
        {
            "Steps": str(request.table.steps),
            "Sampler": request.table.solver,
            "CFG scale": f"{request.cfg_scale:g}",
            **({} if request.guidance is None else {"Distilled CFG Scale": f"{request.guidance:g}"}),
            "Seed": str(seed),
            "Size": f"{request.width}x{request.height}",
            "Model hash": bundle.model_hash,
            "Model": bundle.manifest.name,
            **({} if request.tile is None else {"VAE tile": str(request.tile)}),
            **({} if request.skipped is None else {"Steps of the initial image": str(request.skipped)}),
            **batch,
            "Version": f"latentc {__version__}",
        },
    )
