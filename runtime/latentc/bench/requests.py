"""Times requests, stage by stage and as a whole, on the backend's own clock (CUDA events on a GPU).

Two ways through the same loop. Step by step, with an instant between any two steps: what a step costs. And as one,
from the request to the picture on the host, which a backend may replay: what a user waits for.
"""

import itertools
import time

import msgspec
import numpy as np

from latentc.prompt_cache import PromptCache
from latentc.request import Request
from latentc.sampler import Sampling
from latentc.session import Session, trajectory_of_request
from latentc.trajectory import Trajectory

WARM_UPS = 2  # the first sets engines up, the second may be recorded


class Percentiles(msgspec.Struct, frozen=True):
    """Of `count` samples, in milliseconds."""

    p50: float
    p90: float
    p99: float
    count: int


class Timings(msgspec.Struct, frozen=True):
    """What the requests of one batch size cost."""

    batch: int
    prologue_ms: Percentiles
    step_ms: Percentiles
    decode_ms: Percentiles
    request_ms: Percentiles  # from the request to the picture on the host, the loop as one
    images_per_s: float


def percentiles(samples: list[float]) -> Percentiles:
    """p50, p90 and p99, interpolated; at least one sample."""
    p50, p90, p99 = (float(value) for value in np.percentile(samples, (50, 90, 99)))
    return Percentiles(p50, p90, p99, len(samples))


def timed_requests(session: Session, request: Request, repeat: int) -> Timings:
    """Draws `request` twice `repeat` times (and warm-ups), with another seed each time."""
    prologue: list[float] = []
    steps: list[float] = []
    decode: list[float] = []
    whole: list[float] = []
    for number in range(WARM_UPS + repeat):
        seed = number + 1
        begin = time.perf_counter()
        _sampling(session, _trajectory(session, request, seed)).draw()
        whole_ms = (time.perf_counter() - begin) * 1e3
        parts = _by_stage(session, _trajectory(session, request, seed))
        if number >= WARM_UPS:
            whole.append(whole_ms)
            prologue.append(parts[0])
            steps += parts[1]
            decode.append(parts[2])
    return Timings(
        batch=request.count,
        prologue_ms=percentiles(prologue),
        step_ms=percentiles(steps),
        decode_ms=percentiles(decode),
        request_ms=percentiles(whole),
        images_per_s=request.count / (float(np.median(whole)) / 1e3),
    )


def _by_stage(session: Session, trajectory: Trajectory) -> tuple[float, list[float], float]:
    """Milliseconds of the prologue, of each step, and of the decoder."""
    backend = session.backend
    begin = backend.now()
    sampling = _sampling(session, trajectory)
    instants = [backend.now()]
    for _ in sampling.steps():
        instants.append(backend.now())
    sampling.decode()
    end = backend.now()
    steps = [later.ms_since(earlier) for earlier, later in itertools.pairwise(instants)]
    return instants[0].ms_since(begin), steps, end.ms_since(instants[-1])


def _trajectory(session: Session, request: Request, seed: int) -> Trajectory:
    return trajectory_of_request(session.bundle, request, seed, tokenizers=session.tokenizers)


def _sampling(session: Session, trajectory: Trajectory) -> Sampling:
    """With an empty cache: a text that was encoded before would cost nothing."""
    return Sampling(
        session.backend, session.engines, session.bundle.manifest, trajectory, PromptCache(), session.prologue
    )
