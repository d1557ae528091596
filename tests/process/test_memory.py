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
    assert freed("from sidecar.process import memory; memory.trim_heap()") > 20e6
    assert freed("from sidecar.process import memory") < 20e6


@glibc
def test_large_buffers_are_kept_for_the_next_until_they_are_given_back() -> None:
    """A collector that moves blocks fetches no pages from the kernel for each of them."""
    faults = """
import resource
from sidecar.process import memory
def touched(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        [bytearray(128 << 10) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{}
touched(1)
print(touched(100))
"""
    kept, fetched = (
        int(subprocess.check_output([sys.executable, "-c", faults.format(how)]))
        for how in ("memory.raise_mmap_threshold()", "memory.lower_mmap_threshold()")
    )
    assert kept < 100
    assert fetched > 20_000
    keep = "from sidecar.process import memory; memory.raise_mmap_threshold(64 << 20)"
    assert freed(keep) < 20e6
    assert freed(f"{keep}; memory.trim_heap()") > 20e6


@glibc
def test_threads_share_one_heap() -> None:
    """What one thread has freed the next one takes, instead of a heap for each."""
    heaps = """
import threading
from sidecar.process import memory
{}
gate = threading.Barrier(9)
def work():
    kept = [bytes(2000) for _ in range(10)]
    gate.wait(); gate.wait()
for _ in range(8):
    threading.Thread(target=work).start()
gate.wait()
# A heap of a thread's own is a mapping of 64 MiB, most of it without any permission.
print(sum("---p" in line and " 00:00 0" in line and
    sum(int(a, 16) * s for a, s in zip(line.split()[0].split("-"), (-1, 1))) > 60 << 20
    for line in open("/proc/self/maps")))
gate.wait()
"""
    one, many = (
        int(subprocess.check_output([sys.executable, "-c", heaps.format(how)]))
        for how in ("memory.use_single_arena()", "")
    )
    assert one == 0
    assert many > 0


@glibc
def test_a_program_gives_back_what_its_start_has_used() -> None:
    """Once it has settled, without a word of its own."""
    wait = """
import asyncio
from sidecar.process import lifecycle
lifecycle._STARTUP_SECONDS = 0.01
lifecycle.run(asyncio.sleep(0.1))
"""
    assert freed(wait) > 20e6
