"""latentc, in an environment that has its wheel and no torch: the loop as the command runs it, stage by stage."""

import itertools
import time
from pathlib import Path
from typing import Any

from latentc.arguments import parser
from latentc.commands.job import job_of
from latentc.commands.sample import Options
from latentc.prompt_cache import PromptCache
from latentc.sampler import Sampling
from latentc.session import open_session, trajectory_of_request

from benchmarks.cpu.request_flags import flags
from benchmarks.cpu.worker import Draw, Job


def load_latentc(job: Job) -> tuple[str, Draw]:
    """The session of `latentc sample BUNDLE`, with the engines that `latentc build` has made."""
    session = open_session(Path(job["bundle"]), "onnxruntime", job["threads"])

    def draw(seed: int, count: int, steps: int) -> tuple[Any, dict[str, Any]]:
        found = job_of(session.bundle, wanted(job, seed, count, steps).wanted)
        begin = time.perf_counter()
        trajectory = trajectory_of_request(session.bundle, found.request, seed, tokenizers=session.tokenizers)
        # No text is remembered from the request before: the peers remember none.
        sampling = Sampling(
            session.backend, session.engines, session.bundle.manifest, trajectory, PromptCache(), session.prologue
        )
        instants = [time.perf_counter()]
        for _ in sampling.steps():
            instants.append(time.perf_counter())
        pictures = sampling.decode()
        end = time.perf_counter()
        return pictures.transpose(0, 2, 3, 1), {
            "request_ms": (end - begin) * 1e3,
            "prologue_ms": (instants[0] - begin) * 1e3,
            "step_ms": [(later - earlier) * 1e3 for earlier, later in itertools.pairwise(instants)],
            "decode_ms": (end - instants[-1]) * 1e3,
        }

    return session.backend.name, draw


def wanted(job: Job, seed: int, count: int, steps: int) -> Options:
    """What `latentc sample` makes of its flags."""
    given = vars(parser().parse_args(["sample", job["bundle"], *flags(job), "-s", str(seed), "-b", str(count)]))
    given.pop("command")
    return Options(**given | {"steps": steps})
