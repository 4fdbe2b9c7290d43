"""A progress bar in a dozen lines, and a stopwatch: no dependency is worth its import time here."""

import sys
import time

_WIDTH = 30


class ProgressBar:
    """Draws `done` of `total` on stderr, if that is a terminal; otherwise does nothing."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._shown = sys.stderr.isatty()
        self._begin = time.perf_counter()

    def update(self, done: int) -> None:
        """Shows that `done` are done; the last one removes the bar."""
        if not self._shown:
            return
        filled = _WIDTH * done // self._total
        rate = done / max(time.perf_counter() - self._begin, 1e-9)
        bar = f"\r{self._what} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{self._total} {rate:.1f}/s "
        sys.stderr.write(bar if done < self._total else "\r\033[K")
        sys.stderr.flush()


class Stopwatch:
    """Milliseconds by stage: `lap(name)` ends the stage that the last lap began."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self.laps_ms: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends the current stage and calls it `name`."""
        now = time.perf_counter()
        self.laps_ms[name] = round((now - self._last) * 1e3, 3)
        self._last = now

    def correct(self, earlier: str, later: str, ms: float) -> None:
        """`earlier` took `ms` on a device that was still at it when its lap ended; the rest is `later`'s."""
        moved = round(ms - self.laps_ms[earlier], 3)
        self.laps_ms[earlier] = round(self.laps_ms[earlier] + moved, 3)
        self.laps_ms[later] = round(self.laps_ms[later] - moved, 3)

    def timings_ms(self) -> dict[str, float]:
        """All stages, and `total`, from the stopwatch's making to the end of the last stage."""
        return {**self.laps_ms, "total": round((self._last - self._begin) * 1e3, 3)}
