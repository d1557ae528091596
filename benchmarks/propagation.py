"""From the rename to the reader's memory: `sidecar.watch` beside `watchfiles` at its defaults, in one run.

    python benchmarks/propagation.py [--publishes 100]

The writer is a process of its own and puts the time of the rename into the content.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import watchfiles

import sidecar

WRITER = """
import os, sys, time
path, publishes, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for number in range(1, publishes + 1):
    time.sleep(pause)
    with open(path + ".new", "wb") as file:
        file.write(b"%d %d" % (number, time.monotonic_ns()))
    os.rename(path + ".new", path)
"""
PAUSE = 0.15
"""Seconds between two publishes: shorter ones watchfiles would report together."""
IDLE = 5.0


async def by_sidecar(path: Path) -> AsyncIterator[bytes]:
    async with aclosing(aiter(sidecar.watch(path))) as snapshots:
        async for snapshot in snapshots:
            yield snapshot.data


async def by_watchfiles(path: Path) -> AsyncIterator[bytes]:
    """As its manual has it: watch the directory, read the file when something has changed."""
    async for _ in watchfiles.awatch(path.parent):
        with suppress(FileNotFoundError):
            yield path.read_bytes()


async def measure(contents: AsyncIterator[bytes], path: Path, publishes: int) -> list[float]:
    """Return the delays in milliseconds of all contents that were seen."""
    writer: subprocess.Popen[bytes] | None = None
    delays: list[float] = []
    pending = asyncio.ensure_future(anext(contents))
    await asyncio.sleep(0.5)  # the watch is armed
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, str(publishes), str(PAUSE)])
    last = 0
    while last < publishes:
        data = await asyncio.wait_for(pending, 30)
        now = time.monotonic_ns()
        pending = asyncio.ensure_future(anext(contents))
        number, stamp = map(int, data.split())
        if number > last:
            delays.append((now - stamp) / 1e6)
            last = number
    pending.cancel()
    await asyncio.wait({pending})
    writer.wait()
    return delays


async def wake_ups(path: Path) -> float:
    """Return the voluntary context switches a second of a process that only watches."""
    async with sidecar.watch(path) as watch:
        await watch.looked()
        await asyncio.sleep(3)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        await asyncio.sleep(IDLE)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / IDLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publishes", type=int, default=100)
    options = parser.parse_args()
    for name, follow in (("sidecar.watch", by_sidecar), ("watchfiles", by_watchfiles)):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "config")
            path.write_text("0 0")
            delays = sorted(sidecar.run(measure(follow(path), path, options.publishes)) or [])
        p99 = delays[int(len(delays) * 0.99)]
        print(
            f"{name:14} median {statistics.median(delays):7.3f} ms, p99 {p99:7.3f} ms,"
            f" worst {delays[-1]:7.3f} ms ({len(delays)} of {options.publishes} contents seen)"
        )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config")
        path.write_text("0 0")
        rate = sidecar.run(wake_ups(path))
    print(f"at rest, re-check every second: {rate:.1f} voluntary context switches a second")
    print(f"on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
