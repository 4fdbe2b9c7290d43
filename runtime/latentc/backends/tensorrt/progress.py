"""TensorRT's IProgressMonitor as our progress bar; 8.6 has none, and then a build is silent until it is done."""

from typing import Any

from latentc.backends.tensorrt.library import Library
from latentc.progress import ProgressBar


def attach_progress(library: Library, config: Any, what: str) -> Any:
    """Shows the outermost phase of a build as a bar. What is returned must live as long as the build; None on 8.6."""
    base: Any = getattr(library.module, "IProgressMonitor", None)
    if base is None or not hasattr(config, "progress_monitor"):
        return None

    class Monitor(base):  # type: ignore[misc]
        """Called from TensorRT's own threads."""

        def __init__(self) -> None:
            base.__init__(self)
            self.bar: ProgressBar | None = None
            self.total = 0
            self.outermost: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if self.outermost is None and num_steps > 0:
                self.outermost, self.total = phase_name, num_steps
                self.bar = ProgressBar(what, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.bar is not None and phase_name == self.outermost:
                self.bar.update(min(step + 1, self.total))
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            if self.bar is not None and phase_name == self.outermost:
                self.bar.update(self.total)
                self.outermost = self.bar = None

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor
