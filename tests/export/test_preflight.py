"""An export that cannot be finished is refused before it begins, with the numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from export import memory, preflight
from export.memory import Memory, available_memory, resident_bytes
from export.preflight import estimated_bundle_bytes, memory_need, require_disk, require_memory
from export.source_sizes import MAX_HEADER_BYTES, source_sizes, stored_tensors
from models.latent_diffusion import SourceError

GIBIBYTE = 1 << 30


def test_sizes_of_a_source_are_those_of_its_tensors(random_dit: Path) -> None:
    def elements(folder: str, skip: tuple[str, ...] = ()) -> list[int]:
        tensors = safetensors.numpy.load_file(random_dit / folder / "diffusion_pytorch_model.safetensors")
        return [value.size for name, value in tensors.items() if not name.startswith(skip)]

    sizes = source_sizes(random_dit, img2img=True)
    assert sizes.parameters == {folder: sum(elements(folder)) for folder in ("transformer", "vae")}
    assert sizes.largest_parameter == max(elements("transformer") + elements("vae"))
    assert sizes.stored_bytes["vae"] == 4 * sizes.parameters["vae"]
    decoding = source_sizes(random_dit, img2img=False)
    assert decoding.parameters["vae"] == sum(elements("vae", ("encoder.", "quant_conv.")))
    assert decoding.parameters["vae"] < sizes.parameters["vae"]
    wide, half = (estimated_bundle_bytes(sizes, precision) for precision in ("fp32", "fp16"))
    assert wide - half == 2 * sizes.num_parameters


def test_only_the_files_that_are_read_count(random_dit: Path, tmp_path: Path) -> None:
    source = shutil.copytree(random_dit, tmp_path / "dit")
    before = source_sizes(source, img2img=True)
    weights = source / "transformer" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    shutil.copytree(source / "vae", source / "safety_checker")
    index = json.loads((source / "model_index.json").read_text())
    (source / "model_index.json").write_text(json.dumps(index | {"safety_checker": ["a", "b"]}))
    assert source_sizes(source, img2img=True) == before


def test_no_weight_is_read(tmp_path: Path) -> None:
    """A file of 8 GiB, of which only the header takes room on disk."""
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [2 * GIBIBYTE, 2], "data_offsets": [0, 8 * GIBIBYTE]}}
    ).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 8 * GIBIBYTE)
    assert stored_tensors(path)["w"].num_elements == 4 * GIBIBYTE


def entry(**changes: object) -> Callable[[], bytes]:
    return lambda: json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}).encode()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (entry(shape=[2, 3]), "cannot lie at 0…16 of 16 bytes"),
        (entry(shape=[-2, -2]), "cannot lie at"),
        (entry(data_offsets=[0, 17], shape=[17], dtype="U8"), "cannot lie at"),
        (entry(data_offsets=[-16, 0]), "cannot lie at"),
        (entry(shape=[10**30, 0], data_offsets=[16, 0]), "cannot lie at|damaged"),
        (entry(dtype="Q4_K"), "dtype 'Q4_K'"),
        (entry(shape="abc"), "damaged"),
        (entry(shape=[2.5]), "damaged"),
        (lambda: b"[" * 100_000, "damaged"),
        (lambda: b"[1]", "damaged"),
        (lambda: b"\xff\xfe", "damaged"),
        (lambda: b'{"w": {"dtype": "F32"}}', "damaged"),
    ],
)
def test_hostile_headers_are_one_line(tmp_path: Path, header: Callable[[], bytes], message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header()).to_bytes(8, "little") + header() + bytes(16))
    with pytest.raises(SourceError, match=message) as error:
        stored_tensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 17, 17 + 1, MAX_HEADER_BYTES + 1, 2**63])
def test_a_header_that_is_longer_than_its_file_or_too_long(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + bytes(16) if size else b"")
    with pytest.raises(SourceError, match="no safetensors file, or only the beginning of one"):
        stored_tensors(path)


def test_metadata_and_empty_tensors_are_read(tmp_path: Path) -> None:
    tensors = {"scalar": np.array(1, np.float16), "none": np.zeros((0, 3), np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = stored_tensors(tmp_path / "model.safetensors")
    assert {name: (t.dtype, t.shape, t.num_bytes) for name, t in found.items()} == {
        "scalar": ("F16", (), 2),
        "none": ("F32", (0, 3), 0),
    }


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=10_000_000_000)

    monkeypatch.setattr(preflight.shutil, "disk_usage", disk_usage)
    target = tmp_path / "not" / "yet" / "bundle"
    require_disk(target, 10_000_000_000)
    require_disk(target, 12_000_000_000, kept_bytes=2_000_000_000)
    message = (
        rf"{target}: the bundle needs 11.50 GB more on disk .*, and {tmp_path} has 10.00 GB free; free 1.50 GB, or "
        "give --output a path on another file system"
    )
    with pytest.raises(SourceError, match=message):
        require_disk(target, 12_000_000_000, kept_bytes=500_000_000)
    assert set(asked) == {tmp_path}


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: Memory(2_000_000_000, "the control group /x"))
    monkeypatch.setattr(preflight, "resident_bytes", lambda: 500_000_000)
    need = memory_need(25_000_000, program_bytes=1_000_000_000, verification_bytes=1_100_000_000)
    assert need.weights == 400_000_000
    require_memory(need)
    message = (
        r"needs 2.60 GB of memory \(1.00 GB for itself, 0.40 GB for the largest weight, 1.20 GB for its "
        r"verification\), and the control group /x allows 2.50 GB; .*--memory"
    )
    with pytest.raises(SourceError, match=message):
        require_memory(memory_need(25_000_000, program_bytes=1_000_000_000, verification_bytes=1_200_000_000))
    monkeypatch.setattr(preflight, "available_memory", lambda: None)
    require_memory(memory_need(10**12, 0, 0))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/proc and /sys/fs/cgroup of a machine with 8 GiB available."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc" / "meminfo", f"MemTotal:       99999 kB\nMemAvailable:   {8 * GIBIBYTE // 1024} kB\n")
    write(tmp_path / "proc" / "self" / "status", "Name:\tpython\nVmHWM:\t   4096 kB\nVmRSS:\t    2048 kB\n")
    return tmp_path


def test_memory_of_the_machine(machine: Path) -> None:
    assert available_memory() == Memory(8 * GIBIBYTE, "this machine")
    assert resident_bytes() == 2048 * 1024


def test_memory_of_control_groups_of_version_2(machine: Path) -> None:
    write(machine / "proc" / "self" / "cgroup", "0::/user.slice/job\n")
    for group, limit, usage in (("user.slice/job", "max", 1 << 20), ("user.slice", str(4 * GIBIBYTE), 3 * GIBIBYTE)):
        write(machine / "cgroup" / group / "memory.max", f"{limit}\n")
        write(machine / "cgroup" / group / "memory.current", f"{usage}\n")
        stat = f"anon 5\nfile {GIBIBYTE}\ninactive_file {GIBIBYTE // 2}\nactive_file {GIBIBYTE // 4}\n"
        write(machine / "cgroup" / group / "memory.stat", stat)
    expected = Memory(GIBIBYTE + GIBIBYTE * 3 // 4, f"the control group {machine / 'cgroup' / 'user.slice'}")
    assert available_memory() == expected


def test_memory_of_control_groups_of_version_1_seen_from_a_container(machine: Path) -> None:
    """The path names a group that is not there: the container's own lies at the root of the mount."""
    write(machine / "proc" / "self" / "cgroup", "5:devices:/docker/1\n4:cpu,memory:/docker/1\n0::/\n")
    root = machine / "cgroup" / "memory"
    write(root / "memory.limit_in_bytes", f"{2 * GIBIBYTE}\n")
    write(root / "memory.usage_in_bytes", f"{GIBIBYTE}\n")
    write(root / "memory.stat", f"inactive_file 7\ntotal_inactive_file {GIBIBYTE // 8}\ntotal_active_file 0\n")
    assert available_memory() == Memory(GIBIBYTE + GIBIBYTE // 8, f"the control group {root}")
    write(root / "memory.limit_in_bytes", "9223372036854771712\n")  # none
    assert available_memory() == Memory(8 * GIBIBYTE, "this machine")


def test_memory_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    assert available_memory() is None
    assert resident_bytes() == 0
