"""Runs a command, and watches the memory of its whole process tree from outside: resident, its own, and mapped files.

Every tenth of a second /proc/PID/status is read for the process and all below it. VmHWM is the kernel's own high-water
mark of one process and misses nothing; the other figures are of sums over the tree, and can miss what lasts less than
a tenth of a second. RssFile counts pages of mapped files, which the kernel takes back when memory is short; RssAnon is
what the process itself holds. Linux only.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

INTERVAL_S = 0.1
_PHASE = re.compile(r"([a-z][a-z ]*?) +(\d+\.\d) s")
_FIELDS = {"VmHWM": "hwm", "VmRSS": "rss", "RssAnon": "anon", "RssFile": "file"}
MAX_LINES = 40


@dataclass
class Memory:
    """The most that was seen, in bytes."""

    rss: int = 0  # of the tree at one moment
    anon: int = 0
    file: int = 0
    hwm: int = 0  # of the largest process, as the kernel keeps it

    def raise_to(self, seen: "Memory") -> None:
        """Each figure for itself."""
        for name in ("rss", "anon", "file", "hwm"):
            setattr(self, name, max(getattr(self, name), getattr(seen, name)))


@dataclass
class Phase:
    """What the command printed of one phase (`hoist   1.2 s`), and the most resident memory while it lasted."""

    seconds: float
    rss: int = 0


@dataclass
class Run:
    """One command from its start to its end."""

    status: int  # the exit code, negative for a signal
    seconds: float
    peak: Memory
    phases: dict[str, Phase]
    written_bytes: int  # that reached the disk's queue, of the processes as they were last seen
    stopped: str | None = None  # why it was killed here, if it was
    said: list[str] = field(default_factory=list)  # its last lines


def run_watched(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    limit_bytes: int | None = None,
    limit_s: float | None = None,
) -> Run:
    """Runs the command to its end, or until its tree holds more than `limit_bytes`, or for `limit_s` seconds."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[tuple[float, str]] = []
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    run = Run(0, 0.0, Memory(), {}, 0)
    samples: list[tuple[float, int]] = []
    written: dict[int, int] = {}
    try:
        while process.poll() is None:
            pids = tree(process.pid)
            seen = memory_of(pids)
            run.peak.raise_to(seen)
            samples.append((time.monotonic(), seen.rss))
            written |= {pid: count for pid in pids if (count := _written(pid)) is not None}
            if limit_bytes is not None and seen.rss > limit_bytes:
                run.stopped = f"held {seen.rss / 1e9:.1f} GB, the limit is {limit_bytes / 1e9:.1f} GB"
            elif limit_s is not None and time.monotonic() - start > limit_s:
                run.stopped = f"ran {limit_s:.0f} s, the limit"
            if run.stopped is not None:
                break
            time.sleep(INTERVAL_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        run.status = process.wait()
    reader.join(timeout=5)
    run.seconds = time.monotonic() - start
    run.written_bytes = sum(written.values())
    run.phases = phases(lines, samples)
    run.said = [text for _, text in lines][-MAX_LINES:]
    return run


def phases(lines: Sequence[tuple[float, str]], samples: Sequence[tuple[float, int]]) -> dict[str, Phase]:
    """Of (moment, line) and (moment, resident bytes): a phase ends when its line is printed."""
    found: dict[str, Phase] = {}
    for moment, text in lines:
        match = _PHASE.fullmatch(text)
        if match is not None:
            phase = found.setdefault(match[1], Phase(0.0))
            phase.seconds = round(phase.seconds + float(match[2]), 1)
            during = [rss for at, rss in samples if moment - float(match[2]) <= at <= moment]
            phase.rss = max([phase.rss, *during])
    return found


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:  # grows while it is walked
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # it ended
    return found


def memory_of(pids: Sequence[int]) -> Memory:
    """What the processes hold now; VmHWM is that of the largest."""
    total = Memory()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        values = {
            key: int(text.split()[0]) * 1024 for key, _, text in (s.partition(":") for s in lines) if key in _FIELDS
        }
        total.hwm = max(total.hwm, values.get("VmHWM", 0))
        total.rss += values.get("VmRSS", 0)
        total.anon += values.get("RssAnon", 0)
        total.file += values.get("RssFile", 0)
    return total


def _written(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), None)


def _read(stream: IO[bytes], lines: list[tuple[float, str]]) -> None:
    """Lines with the moment at which they came; a progress bar's carriage returns end lines, too."""
    rest = b""
    while piece := os.read(stream.fileno(), 65536):
        *whole, rest = re.split(rb"[\r\n]+", rest + piece)
        moment = time.monotonic()
        lines += [(moment, line.decode(errors="replace").strip()) for line in whole if line.strip()]
    if rest.strip():
        lines.append((time.monotonic(), rest.decode(errors="replace").strip()))
