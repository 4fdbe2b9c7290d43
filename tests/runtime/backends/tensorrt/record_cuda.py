"""Writes api/cuda-bindings-VERSION.json: the signatures of the real cuda-bindings that are installed; no GPU is needed.

pip install cuda-bindings==12.8.0
python tests/runtime/backends/tensorrt/record_cuda.py tests/runtime/backends/tensorrt/api
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).parents[4] / "runtime/latentc/backends/cuda/runtime.py"


def names() -> list[str]:
    """Every name of the CUDA runtime that latentc speaks of."""
    text = SOURCE.read_text()
    called = re.findall(r'"(cuda[A-Z]\w+)"', text) + re.findall(r"_module\.(cuda[A-Z]\w+)", text)
    kinds = [f"cudaMemcpyKind.cudaMemcpy{kind}" for kind in ("HostToDevice", "DeviceToHost", "DeviceToDevice")]
    return sorted({*called, *kinds, "cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal"})


def main(output: Path) -> None:
    """Looks the names up in the installed binding."""
    from cuda.bindings import runtime

    found = {}
    for name in names():
        owner: object = runtime
        for part in name.split("."):
            owner = getattr(owner, part)
        found[name] = (getattr(owner, "__doc__", None) or "").strip().splitlines()[:1] if callable(owner) else []
    text = json.dumps({name: (lines[0] if lines else "") for name, lines in found.items()}, indent=0, sort_keys=True)
    (output / f"cuda-bindings-{version('cuda-bindings')}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
