"""The timings of kernels that earlier builds took, kept beside the engines: a second build is minutes shorter.

It lies at engines/TARGET.timing with its hash beside it, outlives the engines, and is only ever a help: one that is
damaged, or of another GPU, is left out without a word.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from latentc.bundle import read_sealed
from latentc.errors import BundleError


def attach_timing_cache(config: Any, home: Path, target: str) -> None:
    """Gives a builder config the timings that are there, or an empty cache."""
    file = f"{target}.timing"
    known = b""
    if (home / file).exists():
        try:
            known = bytes(read_sealed(home, file)[0])
        except BundleError:
            known = b""
    cache = config.create_timing_cache(known)
    # TensorRT returns False, and keeps no cache, where the timings are of another device.
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep_timing_cache(config: Any, home: Path, target: str) -> None:
    """Writes the timings after a build, whole or not at all."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    data = bytes(memoryview(cache.serialize()))
    file = f"{target}.timing"
    for name, content in ((file, data), (f"{file}.sha256", f"{hashlib.sha256(data).hexdigest()}  {file}\n".encode())):
        stage = home / f".timing-{os.getpid()}"
        stage.write_bytes(content)
        stage.replace(home / name)
