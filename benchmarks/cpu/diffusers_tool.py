"""diffusers, eager and compiled; and the call of its pipelines, which OpenVINO's and optimum's peers share.

A pipeline is timed from outside: its denoiser and its decoder are put behind stand-ins that look at the clock when they
are called. Everything else is the pipeline's own code.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cpu.worker import Draw, Job


class Clock:
    """When the denoiser and the decoder of the running request were called."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.calls: list[float] = []
        self.decode = self.begin

    def timings(self) -> dict[str, Any]:
        """Of a request that ends now, in milliseconds."""
        end = time.perf_counter()
        instants = [*self.calls, self.decode]
        return {
            "request_ms": (end - self.begin) * 1e3,
            "prologue_ms": (instants[0] - self.begin) * 1e3,
            "step_ms": [(later - earlier) * 1e3 for earlier, later in itertools.pairwise(instants)],
            "decode_ms": (end - self.decode) * 1e3,
        }


class Timed:
    """A denoiser that notes when it is called; all else is the denoiser's own."""

    def __init__(self, denoiser: Any, clock: Clock) -> None:
        self._denoiser, self._clock = denoiser, clock

    def __call__(self, *given: Any, **named: Any) -> Any:
        self._clock.calls.append(time.perf_counter())
        return self._denoiser(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


def load_eager(job: Job) -> tuple[str, Draw]:
    """The pipeline as it comes."""
    import diffusers

    return f"diffusers {diffusers.__version__}", drawing(job, pipeline_of(job))


def load_compiled(job: Job) -> tuple[str, Draw]:
    """Denoiser and decoder through torch.compile, for each batch size anew, weights folded in as constants.

    max-autotune was tried and not taken: on a CPU it tunes its matrix products for minutes, and they are oneDNN's in
    the end. Freezing is what makes inductor pack the weights once.
    """
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    pipeline = pipeline_of(job)
    pipeline.transformer.compile(dynamic=False)
    decode = torch.compile(pipeline.vae.decode, dynamic=False)
    pipeline.vae.decode = decode
    draw = drawing(job, pipeline)

    def without_gradients(seed: int, count: int, steps: int) -> tuple[Any, dict[str, Any]]:
        with torch.no_grad():  # freezing asks for it when it compiles
            return draw(seed, count, steps)

    return f"diffusers, torch.compile of torch {torch.__version__}", without_gradients


def pipeline_of(job: Job, **parts: Any) -> Any:
    """DiffusionPipeline.from_pretrained in float32; `parts` replace components."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(job["threads"])
    return DiffusionPipeline.from_pretrained(job["source"], dtype=torch.float32, **parts)


def drawing(job: Job, pipeline: Any) -> Draw:
    """A function that draws with the pipeline, and times its parts."""
    request = job["request"]
    clock = Clock()
    pipeline.set_progress_bar_config(disable=True)
    # Past the pipeline's own __setattr__, which records what it knows the class of.
    pipeline.__dict__["transformer"] = Timed(pipeline.transformer, clock)
    pipeline.vae.decode = _noted(pipeline.vae.decode, clock)

    def draw(seed: int, count: int, steps: int) -> tuple[Any, dict[str, Any]]:
        clock.__init__()  # type: ignore[misc]
        pictures = call(pipeline, request, seed, count, steps)
        return pictures, clock.timings()

    return draw


def call(pipeline: Any, request: dict[str, Any], seed: int, count: int, steps: int) -> Any:
    """float32 [count, H, W, 3] in [0, 1], as numpy."""
    import torch

    common = {
        "num_inference_steps": steps, "generator": torch.Generator("cpu").manual_seed(seed), "output_type": "np",
    }  # fmt: skip
    if request["kind"] == "dit":
        return pipeline([request["label"]] * count, guidance_scale=request["cfg_scale"], **common).images
    common |= {"height": request["pixels"], "width": request["pixels"]}
    if request["t5_tokens"] is not None:
        common["max_sequence_length"] = request["t5_tokens"]
    scale = request["guidance"] if request["kind"] == "flux" else request["cfg_scale"]
    return pipeline([request["prompt"]] * count, guidance_scale=scale, **common).images


def _noted(decode: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    def noted(*given: Any, **named: Any) -> Any:
        clock.decode = time.perf_counter()
        return decode(*given, **named)

    return noted
