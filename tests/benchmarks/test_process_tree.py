"""The watcher sees what a child holds, maps, prints and leaves; the disk's rates are rates."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.disk_rate import disk_rate, drop_pages
from benchmarks.process_tree import phases, run_watched

MIB = 2**20
ALLOCATES = "import sys, time; b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096]); time.sleep(0.5)"


def test_a_child_that_holds_200_mib_is_seen_to() -> None:
    little = run_watched([sys.executable, "-c", "import time; time.sleep(0.5)"], cwd=Path.cwd())
    much = run_watched([sys.executable, "-c", ALLOCATES], cwd=Path.cwd())
    assert (little.status, much.status) == (0, 0)
    for figure in ("hwm", "rss", "anon"):
        more = getattr(much.peak, figure) - getattr(little.peak, figure)
        assert 199 * MIB < more < 230 * MIB, figure
    assert much.peak.file < little.peak.file + 20 * MIB


def test_a_grandchild_counts_as_well() -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATES!r}])"
    found = run_watched([sys.executable, "-c", script], cwd=Path.cwd())
    assert found.peak.rss > 200 * MIB


def test_mapped_pages_are_of_files(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(MIB) * 100)
    script = (
        "import mmap, time; f = open('large', 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
        "sum(m[::4096]); time.sleep(0.4)"
    )
    found = run_watched([sys.executable, "-c", script], cwd=tmp_path)
    assert found.peak.file > 100 * MIB
    assert found.peak.anon < 60 * MIB


def test_who_holds_more_than_the_limit_is_killed() -> None:
    found = run_watched([sys.executable, "-c", ALLOCATES + "; time.sleep(60)"], cwd=Path.cwd(), limit_bytes=150 * MIB)
    assert found.status == -9
    assert found.stopped is not None
    assert found.seconds < 30


def test_who_runs_longer_than_the_limit_is_killed() -> None:
    found = run_watched([sys.executable, "-c", "import time; time.sleep(60)"], cwd=Path.cwd(), limit_s=0.3)
    assert (found.status, found.stopped) == (-9, "ran 0 s, the limit")


def test_phases_are_read_and_other_lines_are_not() -> None:
    script = (
        "import sys, time; print('hash         0.0 s', file=sys.stderr); b = bytearray(100 << 20); time.sleep(0.4);"
        "sys.stderr.write('50%\\r100%\\rhand over    0.4 s\\nexport: note: 3.0 s\\n')"
    )
    found = run_watched([sys.executable, "-c", script], cwd=Path.cwd())
    assert {name: phase.seconds for name, phase in found.phases.items()} == {"hash": 0.0, "hand over": 0.4}
    assert found.phases["hand over"].rss > 0
    assert "100%" in found.said


def test_a_phase_has_the_peak_of_its_own_time() -> None:
    found = phases([(5.0, "trace   2.0 s"), (9.0, "write   1.0 s")], [(2.0, 900), (4.0, 30), (6.0, 700), (8.5, 20)])
    assert {name: phase.rss for name, phase in found.items()} == {"trace": 30, "write": 20}


def test_the_disk_has_three_rates_and_nothing_is_left(tmp_path: Path) -> None:
    found = disk_rate(tmp_path, 20 * 10**6)
    assert min(found.write, found.read, found.copy) > 0
    assert found.copy < found.file_bytes * 1e6
    assert not list(tmp_path.iterdir())


def test_dropping_pages_leaves_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    drop_pages(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_code_is_handed_on(status: int) -> None:
    assert run_watched([sys.executable, "-c", f"raise SystemExit({status})"], cwd=Path.cwd()).status == status
