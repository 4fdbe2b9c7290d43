"""Draws one picture in a process of its own, and watches its memory from outside.

The process is `python -m tests.runtime.watch BUNDLE MEMORY`; the last line of its stdout is a JSON document.
"""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from latentc.memory import Memory
from latentc.request import Asked, resolve
from latentc.session import open_session

_FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


@dataclass(frozen=True)
class Watched:
    """Bytes on top of what the process held after its imports, and the picture."""

    peak: int  # the kernel's own high-water mark
    opened: int  # the same, when the bundle was open and the session made
    anonymous: int  # the most that was seen of either part
    file: int
    picture: np.ndarray


def watched(bundle: Path, memory: Memory, picture: Path) -> Watched:
    """Starts the process and looks every millisecond; the picture goes by the file `picture`."""
    command = [sys.executable, "-m", "tests.runtime.watch", str(bundle), memory, str(picture)]
    anonymous = file = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError, KeyError):  # it has just ended, or has not yet begun
                now = _status(str(process.pid))
                anonymous, file = max(anonymous, now["RssAnon"]), max(file, now["RssFile"])
            time.sleep(0.001)
        assert process.stdout is not None
        out = process.stdout.read()
    assert process.returncode == 0, out
    document = json.loads(out.splitlines()[-1])
    before = document["before"]
    return Watched(
        peak=document["peak"] - before["VmRSS"],
        opened=document["opened"] - before["VmRSS"],
        anonymous=anonymous - before["RssAnon"],
        file=file - before["RssFile"],
        picture=np.load(picture),
    )


def _status(process: str = "self") -> dict[str, int]:
    """Bytes of a process, as Linux counts them."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in _FIELDS}


def main(bundle: str, memory: Memory, picture: str) -> None:
    """Draws with the bundle's defaults, and prints."""
    onnxruntime.get_available_providers()  # what it imports belongs to the baseline
    before = _status()
    session = open_session(Path(bundle), "onnxruntime", threads=1, memory=memory)
    opened = _status()["VmHWM"]
    drawn = session.draw(resolve(session.bundle.manifest, Asked(prompts=("dog",))), seed=3)
    peak = _status()["VmHWM"]
    np.save(picture, drawn)
    print(json.dumps({"before": before, "opened": opened, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1], "low" if sys.argv[2] == "low" else "normal", sys.argv[3])
