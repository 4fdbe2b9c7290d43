"""What a measurement ran on: processor, cores, load, versions. No host name, no paths."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "diffusers", "onnx", "onnx-ir", "onnxruntime", "networkx", "numpy")


def machine() -> dict[str, object]:
    """As data, for the results."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_1_5_15_min": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _version(package)) is not None},
    }


def _version(package: str) -> str | None:
    """None in a peer's environment, which has not all of them."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The model name, and whether it has AMX, which decides the speed of its matrix products."""
    if not (information := Path("/proc/cpuinfo")).exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in information.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): text.strip() for key, text in lines.items()}
    amx = ", AMX" if "amx_tile" in fields.get("flags", "") else ""
    return fields.get("model name", platform.machine()) + amx
