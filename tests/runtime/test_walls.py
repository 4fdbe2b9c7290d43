"""What the runtime may import: no torch, no compiler, no Pillow, and for a start nothing that it does not need."""

import json
import re
import subprocess
import sys
from pathlib import Path

import latentc

PACKAGE = Path(latentc.__file__).parent
FORBIDDEN = [
    "torch", "diffusers", "transformers", "accelerate", "onnx", "onnx_ir", "onnxscript", "safetensors", "scipy",
    "PIL", "export", "models", "benchmarks",
]  # fmt: skip

GPU = ["tensorrt", "tensorrt_lean", "cuda"]  # only where a backend is opened


def modules() -> list[str]:
    """Every module of the package, by its path."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imported_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has imported after `code`."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_tensorrt_and_cuda_live_in_their_folders() -> None:
    """Nothing imports them by statement, and only two modules name what they import when they are asked to."""
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    imports = re.compile(r"^\s*(import|from) (tensorrt|cuda)\b", re.M)
    assert not [name for name, text in sources.items() if imports.search(text)]
    naming = {name for name, text in sources.items() if re.search(r'"tensorrt_lean"|"cuda\.[a-z.]+"', text)}
    assert naming == {"backends/__init__.py", "backends/tensorrt/library.py", "backends/cuda/runtime.py"}


def test_every_module_imports_where_there_is_no_torch() -> None:
    assert {"latentc.cli", "latentc.sampler", "latentc.backends.onnxruntime", "latentc.commands.sample"} <= set(
        modules()
    )
    block = f"import sys, importlib\nfor name in {[*FORBIDDEN, *GPU]}: sys.modules[name] = None\n"
    imported_by(block + f"for name in {modules()}: importlib.import_module(name)")


def test_the_block_itself_works() -> None:
    blocked = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['torch'] = None; import torch"],
        capture_output=True,
        check=False,
    )
    assert blocked.returncode != 0


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"numpy", "onnxruntime", "msgspec", "difflib", "logging", *FORBIDDEN, *GPU}
    assert not heavy & imported_by("import latentc.cli")
    helped = "import latentc.cli\ntry: latentc.cli.main(['sample', '--help'])\nexcept SystemExit: pass"
    assert not heavy & imported_by(helped)


def test_inspect_needs_no_backend_and_no_numpy(pristine: Path) -> None:
    used = imported_by(f"import latentc.cli; latentc.cli.main(['inspect', {str(pristine)!r}, '--json'])")
    assert not {"numpy", "onnxruntime"} & used


def test_sample_imports_only_its_dependencies(pristine: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(pristine), "--label", "cat", "-o", str(tmp_path / "a.png")]
    used = imported_by(f"import latentc.cli; assert latentc.cli.main({arguments!r}) == 0")
    assert {"numpy", "onnxruntime", "msgspec"} <= used
    assert not set(FORBIDDEN) & used
