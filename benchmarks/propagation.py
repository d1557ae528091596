"""From the rename to the reader's memory: `sidecar.watch` beside `watchfiles` at its defaults, in one run.

    python benchmarks/propagation.py [--publishes 100] [--json FILE]

The writer is a process of its own and puts the time of the rename into the content.
The last rows are of a directory of 10,000 files in 1,000 directories, of which one nested file is replaced each time.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import watchfiles
from _options import arguments
from _rows import Row, cpu_seconds, percentile, report, switches

import sidecar

WRITER = """
import os, sys, time
path, publishes, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
hidden = os.path.join(os.path.dirname(path), ".new")
for number in range(1, publishes + 1):
    time.sleep(pause)
    with open(hidden, "wb") as file:
        file.write(b"%d %d" % (number, time.monotonic_ns()))
    os.rename(hidden, path)
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


DIRECTORIES = 1000
FILES_IN_EACH = 10
CHANGED = "d500/f5"


async def nested(root: Path) -> AsyncIterator[bytes]:
    """The content of one of many nested files, each time that the directory has a new version."""
    async with aclosing(aiter(sidecar.watch(root))) as snapshots:
        async for snapshot in snapshots:
            yield snapshot[CHANGED]


def nested_delays(publishes: int) -> list[float]:
    """Return the delays in milliseconds for a nested file that is replaced by rename."""
    with tempfile.TemporaryDirectory() as directory:
        for number in range(DIRECTORIES):
            folder = Path(directory, f"d{number}")
            folder.mkdir()
            for name in range(FILES_IN_EACH):
                (folder / f"f{name}").write_text("0 0")
        time.sleep(2)  # a file younger than a second is read only when it is older
        path = Path(directory, CHANGED)
        return sidecar.run(measure(nested(Path(directory)), path, publishes)) or []


IDLER = """
import asyncio, os, sys
import sidecar, watchfiles
async def main(kind, path, recheck):
    if kind == "watchfiles":
        async for _ in watchfiles.awatch(os.path.dirname(path)):
            pass
    async with sidecar.watch(path, watch=kind, recheck=recheck) as watch:
        await asyncio.Event().wait()
asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""


def idle(kind: str, recheck: float = 1.0) -> tuple[float, float]:
    """Return the wake-ups a second, and the share of a core, of a process to which nothing happens."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config")
        path.write_text("0 0")
        process = subprocess.Popen([sys.executable, "-c", IDLER, kind, path, str(recheck)])
        try:
            time.sleep(4)  # past the seconds in which a fresh file is read once more
            woken, spent = switches(process.pid), cpu_seconds(process.pid)
            time.sleep(IDLE)
            return (
                (switches(process.pid) - woken) / IDLE,
                (cpu_seconds(process.pid) - spent) / IDLE,
            )
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    options = arguments(__doc__, publishes=100).parse_args()
    delays: dict[str, list[float]] = {}
    for name, follow in (("sidecar.watch", by_sidecar), ("watchfiles", by_watchfiles)):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "config")
            path.write_text("0 0")
            delays[name] = sidecar.run(measure(follow(path), path, options.publishes)) or []
    ours, theirs = delays["sidecar.watch"], delays["watchfiles"]
    peer = "watchfiles"
    rows = [
        Row(f"rename → memory, {name}", percentile(ours, at), "ms", goal, percentile(theirs, at), peer)
        for name, at, goal in (("median", 50, 1.0), ("p99", 99, 5.0), ("worst", 100, None))
    ]  # fmt: skip
    many = nested_delays(options.publishes)
    rows += [
        Row(
            f"rename → memory, one of 10,000 nested files, {name}", percentile(many, at), "ms", goal
        )
        for name, at, goal in (("median", 50, None), ("p99", 99, 20.0))
    ]
    woken, spent = idle("inotify")
    woken_there, spent_there = idle("watchfiles")
    apart, _ = idle("inotify", recheck=3600)
    rows += [
        Row("at rest: wake-ups, re-check each second", woken, "1/s", 1.5, woken_there, peer),
        Row("at rest: wake-ups apart from it", apart, "1/s", 0.2, woken_there, peer),
        Row("at rest: wake-ups when polling", idle("poll")[0], "1/s", 1.5),
        Row("at rest: share of a core", spent * 100, "%", 0.1, spent_there * 100, peer),
    ]
    report(rows, options.json)
    print(
        f"{len(ours)} of {options.publishes} contents seen, {len(theirs)} by watchfiles;", end=" "
    )
    print(f"on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
