"""The binary: made by `make binary`, run with nothing around it, and the same picture as the Python command's."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
from latentc import __version__
from latentc.cli import main

from tests.runtime import toy, toy_variants

pytestmark = pytest.mark.xdist_group("binary")  # it is built once, by one worker


@pytest.fixture(scope="module")
def binary(repository: Path) -> Path:
    """What `make binary` makes; seventeen seconds where nothing of it is there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "binary", f"PYTHON={sys.executable}"]
    # Another worker may be here, too: a test that draws is of the group of its bundle.
    (repository / "build").mkdir(exist_ok=True)
    with (repository / "build" / "binary.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return repository / "build" / "binary" / "latentc" / "latentc"


@pytest.fixture(scope="module")
def entry(repository: Path) -> ModuleType:
    """The binary's first module, imported as a module."""
    loader = SourceFileLoader("binary_entry", str(repository / "runtime" / "binary" / "entry.py"))
    spec = spec_from_loader("binary_entry", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def run(binary: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """With an environment that is empty, as `env -i` makes it."""
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(command, env={}, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


def test_it_draws_what_the_command_draws(binary: Path, random_dit_bundle: Path, tmp_path: Path) -> None:
    flags = ("sample", random_dit_bundle, "--label", "food-fruit", "-s", "7", "-b", "2", "-o")
    done = run(binary, *flags, "binary.png", cwd=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert main([*map(str, flags), str(tmp_path / "command.png")]) == 0
    assert (tmp_path / "binary.png").read_bytes() == (tmp_path / "command.png").read_bytes()
    over = ("--init-image", tmp_path / "command.png")  # Pillow is inside: it is the bundle that cannot
    assert "has no encoder" in run(binary, *flags, tmp_path / "a.png", *over).stderr


def test_prompts_become_the_same_tokens(binary: Path, tmp_path: Path) -> None:
    bundle = toy.write_bundle(tmp_path / "toy")
    toy_variants.make_text(bundle)
    flags = ("sample", str(bundle), "-p", "a cat", "-s", "7", "--no-metadata", "-o")
    assert run(binary, *flags, tmp_path / "binary.png").returncode == 0
    assert main([*flags, str(tmp_path / "command.png")]) == 0
    assert (tmp_path / "binary.png").read_bytes() == (tmp_path / "command.png").read_bytes()


def test_it_answers_lines(binary: Path, random_dit_bundle: Path) -> None:
    line = '{"label": "food-fruit", "seed": 1, "png": "base64"}\n'
    done = run(binary, "sample", random_dit_bundle, "--stdin", input=f"{line}no json\n{line}")
    first, failed, third = (json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 0
    assert first["images"] == third["images"]
    assert "the line is no request" in failed["error"]


def test_every_other_command_starts(binary: Path, random_dit_bundle: Path) -> None:
    assert run(binary, "--version").stdout == f"latentc {__version__}\n"
    for command in ("inspect", "verify"):
        assert run(binary, command, random_dit_bundle).returncode == 0
    assert run(binary, "sample", random_dit_bundle).stderr.startswith("latentc: error: which one?")


def test_torch_is_not_inside_and_tokenizers_are(binary: Path) -> None:
    inside = {path.name for path in (binary.parent / "_internal").iterdir()}
    assert {"numpy", "onnxruntime", "tokenizers", "PIL"} <= inside
    assert not {name for name in inside if name.startswith(("torch", "onnx-", "scipy", "tensorrt", "cuda"))}


def test_tensorrt_is_taken_from_plugins_beside_it(binary: Path, random_dit_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "latentc"
    copy.mkdir()
    shutil.copy(binary, copy)
    (copy / "_internal").symlink_to(binary.parent / "_internal")
    asked = ("sample", random_dit_bundle, "--label", "1", "--backend", "tensorrt", "-o", tmp_path / "a.png")
    assert "backend tensorrt is not installed" in run(copy / "latentc", *asked).stderr
    package = copy / "plugins" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from tensorrt.found import here\nraise ImportError(here)\n")
    (package / "found.py").write_text("here = 'it is ' + __name__\n")
    assert "cannot be loaded: tensorrt: it is tensorrt.found" in run(copy / "latentc", *asked).stderr


def test_only_tensorrt_and_cuda_are_looked_for_outside(
    entry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_libs", "cuda", "json", "tensorrtx"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.setattr(entry, "outside", lambda: [str(tmp_path)])
    find = entry.OutsideFinder.find_spec
    for name in ("tensorrt", "tensorrt_libs", "cuda"):
        assert find(name).origin == str(tmp_path / name / "__init__.py")
    for name in ("json", "tensorrtx", "nvidia"):  # inside already, another, not there
        assert find(name) is None
    assert find("tensorrt.plugin", [str(tmp_path / "tensorrt")]) is None  # its parent's path finds it


def test_directories_are_those_of_this_python(
    entry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "latentc"))
    (tmp_path / "plugins").mkdir()
    found = entry.outside()
    assert found[0] == str(tmp_path / "plugins")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert all(version in path or path == "/usr/lib/python3/dist-packages" for path in found[1:])
