"""Cold starts: whole processes, from exec to the first picture written, and the most memory that they held.

Each tool is run once as a warm-up, watched (benchmarks/process_tree.py) for its peak: VmHWM of the largest process, or
the sum over the tree where that was more. The timed rounds are not watched, but waited for: nothing runs beside them.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.environments import ROOT
from benchmarks.disk_rate import drop_pages
from benchmarks.process_tree import run_watched

LIMIT_S = 900.0


def cold_starts(
    commands: Mapping[str, Sequence[str]],
    env: Mapping[str, str],
    rounds: int,
    dropped: Mapping[str, Sequence[Path]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Tool -> seconds of each round, their median, and the peak; `dropped` are directories to drop from the cache."""
    found: dict[str, dict[str, Any]] = {}
    for name, command in commands.items():
        run = run_watched(command, cwd=ROOT, env=env, limit_s=LIMIT_S)
        if run.status != 0:
            said = run.said[-1] if run.said else f"ended with code {run.status}"
            found[name] = {"error": (run.stopped or said)[:300]}
        else:
            peak = {"peak_bytes": max(run.peak.hwm, run.peak.rss), "own_bytes": run.peak.anon}
            found[name] = {"seconds": [], **peak}
    alive = [name for name in commands if "error" not in found[name]]
    for number in range(rounds):
        first = number % len(alive) if alive else 0
        for name in alive[first:] + alive[:first]:
            for directory in (dropped or {}).get(name, ()):
                drop_pages(directory)
            found[name]["seconds"].append(round(_seconds(commands[name], env), 4))
    for name in alive:
        found[name]["median_s"] = float(np.median(found[name]["seconds"]))
    return found


def _seconds(command: Sequence[str], env: Mapping[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begin
