"""Memory after the start: measured in a process of its own."""

import platform
import subprocess
import sys

import pytest

HOLES = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [bytes(2000) for _ in range(20_000)]
kept = blocks[::100]
del blocks
full = resident()
{}
print(full - resident())
"""


def freed(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", HOLES.format(how)], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")


@glibc
def test_holes_in_the_heap_are_given_back() -> None:
    """40 MB in blocks, of which each hundredth is kept: the rest goes back to the kernel."""
    assert freed("from sidecar.runtime import memory; memory.give_back()") > 20e6
    assert freed("from sidecar.runtime import memory") < 20e6


@glibc
def test_a_program_gives_back_what_its_start_has_used() -> None:
    """Once it has settled, without a word of its own."""
    wait = """
import asyncio
from sidecar.runtime import running
running._SETTLED = 0.01
running.run(asyncio.sleep(0.1))
"""
    assert freed(wait) > 20e6
