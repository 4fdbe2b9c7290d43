"""Writes api/VERSION.json: names and signatures of a real TensorRT binding, read without a GPU and without TensorRT.

    pip download --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 tensorrt-cu12-bindings==10.3.0
    unzip -q tensorrt_cu12_bindings-10.3.0-*.whl -d wheel
    python3.11 tests/runtime/backends/tensorrt/record_api.py wheel/tensorrt_bindings tests/runtime/backends/tensorrt/api

The binding wheels of 10.x and 11.x come without the libraries (those are gigabytes). What a binding needs of them is
needed only when it is called: here each library is a stub whose functions abort, and classes can be looked at. A
binding whose libraries are there is imported as it is: give `--real`. Needs gcc, nm and objdump. The wheels that the
tables were read off: tensorrt-bindings 8.6.1, tensorrt-cu12-bindings 10.3.0, 10.13.3.9 and 11.4.0.106,
tensorrt-lean-cu12-bindings 10.3.0 and 11.4.0.106.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = (
    "Builder", "IBuilderConfig", "INetworkDefinition", "ILayer", "ITensor", "OnnxParser", "ParserError",
    "IOptimizationProfile", "ITimingCache", "IProgressMonitor", "IHostMemory", "Runtime", "ICudaEngine",
    "IExecutionContext", "Refitter", "ILogger", "OnnxParserRefitter",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "TensorIOMode",
    "ExecutionContextAllocationStrategy", "DataType", "EngineCapability", "TensorLocation", "WeightsRole",
    "OnnxParserFlag", "PreviewFeature",
)  # fmt: skip

INTROSPECT = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
trt = importlib.import_module(sys.argv[2])
classes, enums = json.loads(sys.argv[3])
def signature(member):
    return (getattr(member, "__doc__", None) or "").strip().splitlines()[:1]
found = {"version": trt.__version__, "classes": {}, "enums": {}, "functions": {}}
for name in classes:
    if hasattr(trt, name):
        members = {k: signature(getattr(getattr(trt, name), k)) for k in dir(getattr(trt, name)) if k[0] != "_"}
        members["__init__"] = signature(getattr(trt, name).__init__)
        kept = {k: v[0] if v else "" for k, v in sorted(members.items()) if k[:4] != "add_" or "profile" in k}
        found["classes"][name] = kept
for name in enums:
    if hasattr(trt, name):
        found["enums"][name] = sorted(getattr(trt, name).__members__)
print(json.dumps(found))
"""


def main(package: Path, output: Path, real: bool) -> None:
    """Imports the binding `package` in a process of its own and writes what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if not real:
            binding = next(package.glob("*.so"))
            for library in needed(binding):
                stub(library, undefined(binding), Path(folder))
            environment["LD_LIBRARY_PATH"] = folder
        asked = json.dumps([CLASSES, ENUMS])
        command = [sys.executable, "-c", INTROSPECT, str(package.parent), package.name, asked]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found["classes"] = {name: {k: plain(v) for k, v in members.items()} for name, members in found["classes"].items()}
    prefix = "tensorrt_lean" if "lean" in package.name else "tensorrt"
    text = json.dumps(found, indent=0, sort_keys=True, separators=(",", ":"))
    (output / f"{prefix}-{found['version']}.json").write_text(text + "\n")


def plain(signature: str) -> str:
    """The part of a pybind11 signature that says how to call: without package names."""
    return re.sub(r"\b(?:tensorrt(?:_lean)?(?:_bindings)?\.)+", "", signature) if "(" in signature else ""


def needed(binding: Path) -> list[str]:
    """The TensorRT libraries that a binding is linked to."""
    listed = subprocess.run(["objdump", "-p", binding], check=True, capture_output=True, text=True).stdout
    return re.findall(r"NEEDED\s+(libnv\S+)", listed)


def undefined(binding: Path) -> list[str]:
    """TensorRT's own functions among what a binding asks for."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", binding], check=True, capture_output=True, text=True
    ).stdout
    symbols = [line.split()[-1].partition("@")[0] for line in listed.splitlines()]
    return [
        name for name in symbols if re.match(r"(create\w+_INTERNAL|get\w*|\w*Plugin\w*|\w*Nv\w*|_ZN?K?\d*nv\w+)$", name)
    ]


def stub(library: str, symbols: list[str], folder: Path) -> None:
    """A library whose functions abort."""
    code = "#include <stdlib.h>\n" + "".join(f"void {name}(void) {{ abort(); }}\n" for name in symbols)
    source = folder / f"{library}.c"
    source.write_text(code)
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", folder / library, source, f"-Wl,-soname,{library}"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]), "--real" in sys.argv)
