"""What a device gets: the runtime alone, in an environment of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

MAX_BYTES = 150_000_000


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with only `pip install ./runtime[cpu]`; its python."""
    home = tmp_path_factory.mktemp("device")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*install, f"{repository / 'runtime'}[cpu]"], capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def test_the_runtime_alone_samples_a_bundle(environment: Path, random_dit_bundle: Path, tmp_path: Path) -> None:
    command = [str(environment.with_name("latentc")), "sample", str(random_dit_bundle), "--label", "food-fruit"]
    subprocess.run([*command, "-o", str(tmp_path / "out.png")], check=True, env={}, cwd=tmp_path)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_small_and_holds_no_torch(environment: Path) -> None:
    site = next((environment.parent.parent / "lib").glob("python3*/site-packages"))
    packages = {path.name.split("-")[0].lower() for path in site.glob("*.dist-info")}
    assert not packages & {"torch", "diffusers", "transformers", "onnx", "safetensors"}
    tools = ("pip", "setuptools", "pkg_resources", "_distutils_hack")  # what a venv brings by itself
    installed = sum(
        path.stat().st_size
        for path in site.rglob("*")
        if path.is_file() and not path.relative_to(site).parts[0].startswith(tools)
    )
    assert installed <= MAX_BYTES, f"{installed / 1e6:.0f} MB"
