"""The environments of `make bench`: one for each tool, made from pinned requirements, and how large each one is.

    latentc        the runtime's wheel with [cpu,text], as a user installs it: no torch
    plot           matplotlib (the group `bench` of pyproject.toml)
    all others     benchmarks/peers/NAME.txt

They lie in build/bench/env, and are made again when their requirements change.
"""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"
CONSTRAINTS = ROOT / "constraints.txt"
# What no tool draws with: what venv itself puts in, and what optimum-onnx.txt has for the plots of another page.
NOT_NEEDED = (
    "pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack",
    "matplotlib", "mpl_toolkits", "contourpy", "cycler", "fontTools", "fonttools", "kiwisolver", "pyparsing",
    "dateutil", "python_dateutil",
)  # fmt: skip

# optimum-intel asks for torchvision and draws without it; the wheel that belongs to a torch for CUDA breaks a torch for
# the CPU ("operator torchvision::nms does not exist", torchvision 0.28.0).
REMOVED = {"optimum-intel": "torchvision"}


def made(name: str, folder: Path) -> Path:
    """The environment's python; makes what is not there, or is not what the requirements say."""
    directory = folder / name
    python = directory / "bin" / "python"
    stamp = directory / ".made"
    wanted = _digest(name)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"makes the environment {name}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
    for arguments in _installs(name):
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    if name in REMOVED:
        command = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", REMOVED[name]]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def packages_bytes(python: Path) -> int:
    """What `du` counts of site-packages: blocks on the disk, each file once, compiled Python left out."""
    seen, total = set(), 0
    for site in python.parents[1].glob("lib/python*/site-packages"):
        for path in site.rglob("*"):
            top = path.relative_to(site).parts[0]
            if top.partition("-")[0] in NOT_NEEDED or "__pycache__" in path.parts or not path.is_file():
                continue
            found = path.lstat()
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total


def _installs(name: str) -> Sequence[Sequence[str]]:
    """Arguments of pip, command by command."""
    constrained = ("--constraint", str(CONSTRAINTS))
    if name == "latentc":
        # No build isolation, so that the pinned backend is the one that builds; it is not needed to draw.
        wheel = ROOT / "build" / "bench" / "wheel"
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*build, "--wheel-dir", str(wheel), str(ROOT / "runtime")], check=True, stdout=sys.stderr)
        newest = max(wheel.glob("latentc-*.whl"), key=lambda path: path.stat().st_mtime)
        return [(*constrained, f"latentc[cpu,text] @ file://{newest}")]
    if name == "plot":
        upgrade = (*constrained, "--upgrade", "pip")  # Python 3.11's own pip knows no groups
        return [upgrade, (*constrained, "--group", f"{ROOT / 'pyproject.toml'}:bench")]
    return [("--requirement", str(PEERS / f"{name}.txt"))]


def _digest(name: str) -> str:
    """Of all that decides what is installed."""
    if name == "latentc":
        files = sorted((ROOT / "runtime" / "latentc").rglob("*.py"))
        files += [ROOT / "runtime" / "pyproject.toml", CONSTRAINTS]
    elif name == "plot":
        files = [ROOT / "pyproject.toml", CONSTRAINTS]
    else:
        files = [*sorted(PEERS.glob("*.txt")), CONSTRAINTS]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":  # python -m benchmarks.cpu.environments NAME …
    for wanted in sys.argv[1:]:
        made(wanted, ROOT / "build" / "bench" / "env")
