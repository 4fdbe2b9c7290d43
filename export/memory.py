"""How much memory this process may still take: what the machine has free, and what its control groups allow."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes, and what sets the limit."""

    num_bytes: int
    limited_by: str


def available_memory() -> Memory | None:
    """The least of MemAvailable and of what each control group above this process has left; None where neither is."""
    return min((*_machine(), *_groups()), key=lambda memory: memory.num_bytes, default=None)


def resident_bytes() -> int:
    """What this process holds now; 0 where that is not known."""
    return next((1024 * int(value) for value in _fields(PROC / "self" / "status", "VmRSS:")), 0)


def _machine() -> Iterator[Memory]:
    for value in _fields(PROC / "meminfo", "MemAvailable:"):
        yield Memory(1024 * int(value), "this machine")


def _groups() -> Iterator[Memory]:
    """For every group from this process's to the root. A container may see its own at the root: all that is there."""
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mounts = [CGROUPS / "memory"]
        elif not controllers:
            mounts = [CGROUPS, CGROUPS / "unified"]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            for directory in (group, *group.parents):
                yield from _group(directory)
                if directory == mount:
                    break


def _group(directory: Path) -> Iterator[Memory]:
    """Version 2's names, then version 1's. Pages of files that are cached make way when memory is asked for."""
    for limit_file, usage_file, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, usage = (_number(directory / name) for name in (limit_file, usage_file))
        if limit is None or usage is None:
            continue
        cached = sum(
            int(value)
            for kind in ("inactive_file", "active_file")
            for value in _fields(directory / "memory.stat", f"{prefix}{kind}")
        )
        yield Memory(max(0, limit - usage + cached), f"the control group {directory}")


def _number(path: Path) -> int | None:
    text = next(iter(_lines(path)), "max")
    return int(text) if text.isdecimal() else None


def _fields(path: Path, key: str) -> Iterator[str]:
    """The values behind `key`, without their units."""
    for line in _lines(path):
        words = line.split()
        if words[:1] == [key] and len(words) > 1:
            yield words[1]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux, or no such group
        return []
