"""The backends by name. Each module is imported when it is asked for, and only then."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, cast

from latentc.errors import BackendError

if TYPE_CHECKING:
    from latentc.backends.protocol import Backend, BackendModule

AUTO = "auto"

# name: (module, the package that it needs, the extra that installs it); `auto` takes the first available
BACKENDS = {
    "onnxruntime": ("latentc.backends.onnxruntime", "onnxruntime", "cpu"),
}


def resolve_backend(name: str) -> str:
    """The name of an installed backend: `name` itself, or for `auto` the first that is available."""
    if name != AUTO and name not in BACKENDS:
        raise BackendError(f"no backend {name}; there are {', '.join(BACKENDS)} and {AUTO}")
    wanted = list(BACKENDS) if name == AUTO else [name]
    for candidate in wanted:
        if importlib.util.find_spec(BACKENDS[candidate][1]) is not None:
            return candidate
    extras = " or ".join(f'pip install "latentc[{BACKENDS[candidate][2]}]"' for candidate in wanted)
    raise BackendError(f"backend {name} is not installed; {extras}")


def open_backend(name: str = AUTO, threads: int = 0) -> "Backend":
    """The backend `name`, ready to load engines; `threads` 0 leaves their number to the backend."""
    module = cast("BackendModule", importlib.import_module(BACKENDS[resolve_backend(name)][0]))
    return module.open_backend(threads)
