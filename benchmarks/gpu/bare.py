"""Runs a module of this checkout in a Python that knows nothing of it, and of which nothing may be changed.

    ANY_PYTHON benchmarks/gpu/bare.py benchmarks.gpu.match build/gpu/emoji-dit build/gpu/emoji-flux

That Python has tensorrt (or tensorrt_lean), cuda-bindings and numpy; what else is needed lies in build/gpu/packages
(prepare.py). Its own paths stay, and processes that it starts find the same.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "build/gpu/packages")]

if __name__ == "__main__":
    # The folder of this file is no place to import from: requests.py there is not the package of that name.
    sys.path[:] = [
        *PATHS,
        *(path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent.resolve()),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
