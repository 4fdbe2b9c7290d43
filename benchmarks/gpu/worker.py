"""One peer of peers.py: holds a model on the GPU, reads seeds from stdin, draws, and answers in lines of JSON.

Ready:    {"what": …}  or  {"error": …}
A seed:   {"request_ms": …, "step_ms": …, "device_memory_bytes": …}

A request is timed on the host from its beginning to the picture on the host. A step is the request's time divided by
its calls: in latentc without the prologue, by CUDA events; in diffusers all of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "a lighthouse at dusk"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker")
    result.add_argument("peer")
    result.add_argument("--bundle", type=Path)
    result.add_argument("--source", type=Path)
    result.add_argument("--pixels", type=int)
    result.add_argument("--batch", type=int, default=1)
    result.add_argument("--steps", type=int, default=50)
    result.add_argument("--cfg-scale", type=float, default=4.0)
    result.add_argument("--solver", default="ddim")
    return result


def main(arguments: list[str] | None = None) -> None:
    """Loads, answers, until stdin ends."""
    options = parser().parse_args(arguments)
    try:
        draw, what = diffusers_peer(options) if options.source is not None else latentc_peer(options)
    except Exception as error:  # whatever a peer fails with is its result
        answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return
    answer({"what": what})
    for line in sys.stdin:
        try:
            answer(draw(int(line)))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def answer(document: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(document), flush=True)


def latentc_peer(options: argparse.Namespace) -> tuple[Callable[[int], dict[str, Any]], str]:
    """graph, enqueue, wait, whole (on TensorRT) and ort."""
    from latentc.request import Asked, resolve
    from latentc.schema import LabelConditioning
    from latentc.session import open_session, trajectory_of_request

    session = open_session(options.bundle, "onnxruntime-cuda" if options.peer == "ort" else "tensorrt")
    manifest, backend = session.bundle.manifest, session.backend
    by_label = isinstance(manifest.conditioning, LabelConditioning)
    asked = Asked(
        label=sorted(manifest.conditioning.labels)[-1] if by_label else None,
        prompts=() if by_label else (PROMPT,),
        count=options.batch,
        steps=options.steps,
        solver=options.solver,
        cfg_scale=options.cfg_scale,
    )
    request = resolve(manifest, asked)

    def draw(seed: int) -> dict[str, Any]:
        begin = time.perf_counter()
        trajectory = trajectory_of_request(session.bundle, request, seed, tokenizers=session.tokenizers)
        sampling = session.sampling(trajectory)
        first = backend.now()
        if options.peer in ("graph", "whole"):
            sampling.replay()
        else:
            for _ in sampling.steps():
                if options.peer == "wait":
                    backend.stream_lane.pool.synchronise()
            sampling.run_decoder()
        last = backend.now()
        sampling.picture()
        request_ms = (time.perf_counter() - begin) * 1e3
        return {
            "request_ms": request_ms,
            "step_ms": last.ms_since(first) / request.table.calls,  # the decoder's share included
            "device_memory_bytes": backend.memory_bytes(),
        }

    return draw, backend.name


def diffusers_peer(options: argparse.Namespace) -> tuple[Callable[[int], dict[str, Any]], str]:
    """eager and compile, in half precision."""
    import diffusers
    import torch
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(options.source, torch_dtype=torch.float16).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    is_dit = type(pipeline).__name__ == "DiTPipeline"
    if is_dit and options.solver == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    if options.peer == "compile":
        torch._inductor.config.conv_1x1_as_mm = True
        pipeline.transformer = torch.compile(pipeline.transformer, mode="max-autotune", fullgraph=True)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode="max-autotune", fullgraph=True)
    common = {"num_inference_steps": options.steps, "output_type": "np"}

    def draw(seed: int) -> dict[str, Any]:
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        if is_dit:
            pipeline([1] * options.batch, guidance_scale=options.cfg_scale, generator=generator, **common)
        else:
            size = {"height": options.pixels, "width": options.pixels}
            prompts = [PROMPT] * options.batch
            pipeline(prompts, guidance_scale=3.5, generator=generator, **size, **common)
        torch.cuda.synchronize()
        request_ms = (time.perf_counter() - begin) * 1e3
        return {
            "request_ms": request_ms,
            "step_ms": request_ms / options.steps,  # prompt and decoder included, as the request is
            "device_memory_bytes": torch.cuda.max_memory_allocated(),
        }

    return draw, f"diffusers {diffusers.__version__}, torch {torch.__version__}, {options.peer}"


if __name__ == "__main__":
    main()
