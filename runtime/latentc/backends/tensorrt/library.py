"""Which TensorRT is there, and what it can do: the full library, else the lean runtime, which only loads engines.

What only some versions have is asked for by feature (`hasattr`), never by version number. A number is compared in one
place only: whether a plan that was built version-compatible may be loaded (plan_record.py).
"""

import importlib
from types import ModuleType
from typing import Any

from latentc.errors import BackendError

_FULL, _LEAN = "tensorrt", "tensorrt_lean"


class Library:
    """The binding, opened, with a logger that remembers what TensorRT complains of."""

    def __init__(self, module: ModuleType) -> None:
        self.module: Any = module
        self.version = str(module.__version__)
        self.log: Any = _logger(module)

    @property
    def can_build(self) -> bool:
        """The lean runtime cannot."""
        return hasattr(self.module, "Builder")

    def has(self, enum: str, member: str) -> bool:
        """Whether this version knows `enum.member`."""
        return member in getattr(getattr(self.module, enum, None), "__members__", {})

    def member(self, enum: str, member: str) -> Any:
        """`enum.member`; to be asked for after `has`."""
        return getattr(self.module, enum).__members__[member]

    def make(self, name: str, *arguments: Any) -> Any:
        """An object of the class `name`; BackendError where TensorRT makes none."""
        self.complaints()
        try:
            return getattr(self.module, name)(*arguments)
        except TypeError as error:  # "factory function returned nullptr" (8.6 without a driver)
            reason = "; ".join(self.complaints()) or str(error)
            raise BackendError(f"TensorRT {self.version} makes no {name}: {reason}") from None

    def complaints(self) -> list[str]:
        """What was logged as an error since the last call."""
        taken = list(self.log.errors)
        self.log.errors.clear()
        return taken


def _logger(module: ModuleType) -> Any:
    """A logger of this binding's own base class, which is why the class is made here."""
    base: Any = module.ILogger
    worst = (base.Severity.ERROR, base.Severity.INTERNAL_ERROR)

    class Log(base):  # type: ignore[misc]
        """Keeps errors; warnings and the rest are TensorRT's own affairs."""

        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in worst:
                self.errors.append(" ".join(str(msg).split()))

    return Log()


def open_library() -> Library:
    """TensorRT, else its lean runtime; raises BackendError, with what to install, if there is neither."""
    problems = []
    for name in (_FULL, _LEAN):
        try:
            return Library(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:
                problems.append(f"{name}: {error}")
        except (ImportError, OSError) as error:  # libnvinfer or what it is linked to is missing
            problems.append(f"{name}: {error}")
    if problems:
        raise BackendError(f"TensorRT is installed but cannot be loaded: {'; '.join(problems)}")
    raise BackendError('TensorRT is not installed; pip install "latentc[tensorrt]" (on Jetson it comes with JetPack)')
