"""Freed memory goes back to the system: seen from a process of its own, since the setting is for its whole life."""

import platform
import subprocess
import sys

import pytest

MB = 2**20
SCRIPT = f"""
import sys
from latentc.heap import give_back_large_blocks

def resident():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

if sys.argv[1] == "yes":
    give_back_large_blocks()
block = bytearray(30 * {MB})
del block  # what is freed raises glibc's threshold
before = resident()
blocks = [bytearray(b"x" * {MB}) * 8 for _ in range(10)]
held = resident() - before
del blocks[:9]  # the last one is the end of the heap
print(held, resident() - before)
"""


def held_and_kept(give_back: str) -> tuple[int, int]:
    """MiB of ten blocks of 8 MiB, and of what is left when nine are freed."""
    command = [sys.executable, "-c", SCRIPT, give_back]
    held, kept = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(held), int(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_freed_blocks_are_given_back() -> None:
    held, kept = held_and_kept("yes")
    assert held >= 79
    assert kept < 20
    assert held_and_kept("no")[1] > 60, "without it glibc keeps them, else this test says nothing"
