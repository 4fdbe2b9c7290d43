"""A worker as the controller sees it: started, asked, and stopped while others have their turn.

An idle tool is stopped by SIGSTOP, and continued before it is asked. So no thread pool of it spins beside the one that
is measured, and no tool has to be set to a passive way of waiting, which would slow it down while it runs.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.process_tree import memory_of, tree

Answer = dict[str, Any]


class Worker:
    """One process and its pipes, in a session of its own."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, cwd=cwd, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        self._log = log
        self.ready = self._answer()
        self._pause()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any]) -> Answer:
        """One request, while all others are stopped; {"error": …} where it failed."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._answer()
        except BrokenPipeError:
            return self._ended()
        finally:
            self._pause()

    def resident_bytes(self) -> int:
        """Of its tree, now."""
        return memory_of(tree(self._process.pid)).rss

    def close(self) -> None:
        """Ends the process: it ends when its input does."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.close()
            self._process.wait(60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        """To the session: torch.compile has processes of its own."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return self._ended()
        found: Answer = json.loads(line)
        return found

    def _ended(self) -> Answer:
        code = self._process.wait()
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return {"error": f"the process ended with code {code}" + (f": {lines[-1][:200]}" if lines else "")}
