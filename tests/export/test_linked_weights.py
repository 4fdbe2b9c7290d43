"""What onnx and ONNX Runtime make of weights that share their bytes with another file (docs/adr/0015).

Not a wish: when one of these changes, the decision can be made again. Clones need a file system that has them
(--basetemp on btrfs or XFS), and are skipped elsewhere.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from export.graph_files import write_graphs
from tests.export.lazy_graphs import drawn, graph_of

FICLONE, FICLONERANGE = 0x40049409, 0x4020940D  # linux/fs.h


def clone(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        try:
            fcntl.ioctl(written, FICLONE, read.fileno())
        except OSError as error:
            pytest.skip(f"no clones on the file system of {target.parent}: {error}")


def linked(tmp_path: Path, link: Callable[[Path, Path], object]) -> Path:
    """A written graph whose weights were moved out of its directory and linked back."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    write_graphs(directory, {"sum": graph_of({"w": drawn(1, (500, 500))})})
    weights = directory / "graphs" / "sum.weights"
    weights.rename(tmp_path / "source")
    link(tmp_path / "source", weights)
    return weights.with_suffix(".onnx")


def runs(path: Path) -> bool:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return bool(np.isfinite(session.run(None, {"x": np.zeros(1, np.float32)})[0]).all())


def test_a_hard_link_is_refused_by_onnx_and_taken_by_onnx_runtime(tmp_path: Path) -> None:
    path = linked(tmp_path, lambda source, target: os.link(source, target))
    with pytest.raises(onnx.checker.ValidationError, match="multiple hard links"):
        onnx.checker.check_model(path)
    with pytest.raises(onnx.checker.ValidationError, match="multiple hard links"):
        onnx.load(path)
    with pytest.raises(ValueError, match="multiple hard links"):
        ir.load(path).graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    assert runs(path)


def test_a_symbolic_link_out_of_the_directory_is_refused_by_all(tmp_path: Path) -> None:
    path = linked(tmp_path, lambda source, target: target.symlink_to(source))
    with pytest.raises(onnx.checker.ValidationError, match="symbolic link"):
        onnx.load(path)
    with pytest.raises(Exception, match="escapes model directory"):
        runs(path)


def test_a_clone_is_a_file_like_any_other(tmp_path: Path) -> None:
    path = linked(tmp_path, clone)
    onnx.checker.check_model(path)
    onnx.load(path)
    assert runs(path)


def test_a_tensor_of_a_safetensors_file_cannot_be_cloned_alone(tmp_path: Path) -> None:
    """Clones are made of whole blocks, and a safetensors file's tensors begin at any multiple of 8."""
    (tmp_path / "source").write_bytes(bytes(1 << 20))
    clone(tmp_path / "source", tmp_path / "whole")
    with (tmp_path / "source").open("rb") as read, (tmp_path / "part").open("wb") as written:
        fcntl.ioctl(written, FICLONERANGE, struct.pack("qQQQ", read.fileno(), 4096, 65536, 0))
        with pytest.raises(OSError, match="Invalid argument"):
            fcntl.ioctl(written, FICLONERANGE, struct.pack("qQQQ", read.fileno(), 1032, 65536, 0))
