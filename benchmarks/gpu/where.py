"""What a measurement on a GPU ran on, without torch: the device, driver, CUDA, TensorRT. No host name, no paths."""

import platform
from importlib.metadata import PackageNotFoundError, version

from latentc.backends.cuda.runtime import open_cuda
from latentc.errors import BackendError

PACKAGES = (
    "latentc", "tensorrt", "tensorrt_lean", "cuda-bindings", "onnxruntime", "onnxruntime-gpu", "numpy", "torch",
    "diffusers",
)  # fmt: skip


def why_no_gpu() -> str | None:
    """Why nothing can be measured here; None if it can."""
    try:
        open_cuda().device()
    except BackendError as error:
        return str(error)
    return None


def where() -> dict[str, object]:
    """As data, for the results; needs a GPU."""
    cuda = open_cuda()
    device = cuda.device()
    return {
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "gpu_memory_bytes": device.total_bytes,
        "cuda": cuda.versions(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _version(package)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
