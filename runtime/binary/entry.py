"""The first module of the binary: `latentc`, with TensorRT and cuda-bindings of the machine, where it has them.

The binary holds neither: they are gigabytes, and belong to the driver. They are looked for by name, in PLUGINS beside
the executable and in the system's directories of this very Python version, and nothing else is ever imported from
outside. No environment variable is read.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PLUGINS = "plugins"  # pip install --target .../latentc/plugins tensorrt cuda-bindings
_NAMES = ("tensorrt", "cuda", "nvidia")  # and what begins with one of them and an underscore: tensorrt_libs


def outside() -> list[str]:
    """The directories that hold packages for this Python version, built as this binary was; those that exist."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = [Path(sys.executable).resolve().parent / PLUGINS]
    found += [Path(root) / version / "dist-packages" for root in ("/usr/local/lib", "/usr/lib")]
    if Path("/usr/bin", version).exists():  # Debian's, of whatever Python 3 the system has; JetPack installs there
        found.append(Path("/usr/lib/python3/dist-packages"))
    return [str(path) for path in found if path.is_dir()]


class OutsideFinder:
    """Finds the packages in _NAMES outside of the binary; their submodules then follow by themselves."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib asks for it: None for what is not to be looked for, or is not there."""
        if path is not None or not any(name == known or name.startswith(f"{known}_") for known in _NAMES):
            return None
        return PathFinder.find_spec(name, outside(), target)


if __name__ == "__main__":
    sys.meta_path.append(OutsideFinder)
    from latentc.cli import main

    sys.exit(main())
