"""The backends by name. Each module is imported when it is asked for, and only then."""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, cast

from latentc.backends.options import EngineOptions
from latentc.errors import BackendError

if TYPE_CHECKING:
    from latentc.backends.protocol import Backend, BackendModule

AUTO = "auto"

# name: (module, the packages of which one is needed, the extra that installs it); `auto` takes the first available
BACKENDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "onnxruntime": ("latentc.backends.onnxruntime", ("onnxruntime",), "cpu"),
    "tensorrt": ("latentc.backends.tensorrt", ("tensorrt", "tensorrt_lean"), "tensorrt"),
    # The same package as the first: it can run on a GPU where the wheel is onnxruntime-gpu.
    "onnxruntime-cuda": ("latentc.backends.onnxruntime_cuda", ("onnxruntime",), "cuda"),
}


def resolve_backend(name: str, bundle: Path | None = None) -> str:
    """The name of an installed backend: `name` itself, or for `auto` the first that is available.

    Where `bundle` has engines of TensorRT, `auto` is TensorRT: someone built them, for a GPU that should be used.
    """
    if name != AUTO and name not in BACKENDS:
        raise BackendError(f"no backend {name}; there are {', '.join(BACKENDS)} and {AUTO}")
    wanted = list(BACKENDS) if name == AUTO else [name]
    if name == AUTO and bundle is not None and any(bundle.glob("engines/tensorrt-*/engine.json")):
        wanted.sort(key=lambda candidate: candidate != "tensorrt")
    for candidate in wanted:
        if any(_installed(package) for package in BACKENDS[candidate][1]):
            return candidate
    extras = " or ".join(f'pip install "latentc[{BACKENDS[candidate][2]}]"' for candidate in wanted)
    raise BackendError(f"backend {name} is not installed; {extras}")


def open_backend(name: str = AUTO, threads: int = 0, options: EngineOptions | None = None) -> "Backend":
    """The backend `name`, ready to load engines; `threads` 0 leaves their number to the backend."""
    module = cast("BackendModule", importlib.import_module(BACKENDS[resolve_backend(name)][0]))
    return module.open_backend(threads, EngineOptions() if options is None else options)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
