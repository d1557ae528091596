"""How cost grows: with the size of a content, the files of a set, the subscribers, the versions that are kept.

    python benchmarks/curves.py [--repeat 5] [--json FILE]

Each point is a median. What should not grow (a publish with the number of kept versions) is as telling as what should.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import subscribers
from _options import arguments
from _rows import Curve, Row, report
from _servers import free_port, sidecar

import sidecar as library

SIZES = (1, 1 << 10, 32 << 10, 1 << 20, 8 << 20, 64 << 20)
FILES = (1, 10, 100, 1_000, 10_000)
SUBSCRIBERS = (1, 10, 100, 1_000, 10_000)
KEPT = (0, 1, 10, 100, 1_000)
FLAT = 3.0
"""How much more a publish may cost with 1,000 versions than with one: names in a directory, nothing that is read."""

Points = list[tuple[float, float]]


async def timed(work: Awaitable[object]) -> float:
    begun = time.perf_counter()
    await work
    return (time.perf_counter() - begun) * 1000


async def seen(
    watch: library.Watch[None], work: Awaitable[library.Publication]
) -> tuple[float, float]:
    """Return the milliseconds after which a publish had ended, and after which a reader had it in memory.

    The second may be the smaller one: a reader sees the rename, and the sync of the directory comes after it.
    """
    arrived: list[float] = []
    end = watch.subscribe(lambda: arrived.append(time.perf_counter()))
    begun = time.perf_counter()
    try:
        done = await work
        ended = time.perf_counter()
        while watch.snapshot is None or watch.snapshot.version != done.version:
            await watch.changed(watch.etag, 30.0)
    finally:
        end()
    return (ended - begun) * 1000, (arrived[-1] - begun) * 1000


async def by_size(repeat: int) -> tuple[Points, Points, Points]:
    """Return publish, the same until the reader has it in memory, and GET /raw, in milliseconds, by bytes."""
    publishes: Points = []
    lags: Points = []
    gets: Points = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as directory:
            workdir = Path(directory)
            volume = library.Volume(workdir, keep=1)
            async with library.watch(workdir / "config", max_size=1 << 30) as watch:
                times = [
                    await seen(watch, volume.put("config", (b"%d" % number).ljust(size)[:size]))
                    for number in range(repeat)
                ]
            took, late = map(statistics.median, zip(*times, strict=True))
            publishes.append((size, took))
            lags.append((size, late))
            port = free_port()
            with sidecar("read")(workdir, port):
                gets.append((size, await asyncio.to_thread(get, port, repeat)))
        print(f"content of {size:,} bytes: publish {publishes[-1][1]:.2f} ms", flush=True)
    return publishes, lags, gets


def get(port: int, repeat: int) -> float:
    took = []
    for _ in range(repeat):
        begun = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/raw", timeout=60) as answer:
            while answer.read(1 << 20):
                pass
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


async def by_files(repeat: int) -> tuple[Points, Points]:
    """Return publish, and the same until the reader has it in memory, in milliseconds, by files of a set."""
    publishes: Points = []
    lags: Points = []
    for count in FILES:
        with tempfile.TemporaryDirectory() as directory:
            volume = library.Volume(directory, keep=2, grace=0.0)
            async with library.watch(directory + "/") as watch:
                times = [
                    await seen(
                        watch, volume.publish({f"{n}": f"{number} {n}" for n in range(count)})
                    )
                    for number in range(min(repeat, 3) if count > 1000 else repeat)
                ]
            took, late = map(statistics.median, zip(*times, strict=True))
            publishes.append((count, took))
            lags.append((count, late))
        print(f"set of {count:,} files: publish {publishes[-1][1]:.1f} ms", flush=True)
    return publishes, lags


async def by_kept(repeat: int) -> tuple[Points, Points]:
    """Return publish, and the list of versions, in milliseconds, by versions that are kept."""
    publishes: Points = []
    lists: Points = []
    for kept in KEPT:
        with tempfile.TemporaryDirectory() as directory:
            volume = library.Volume(directory, keep=kept)
            for number in range(kept + 1):
                await volume.put("config", f"old {number}")
            took = [await timed(volume.put("config", f"new {n}")) for n in range(4 * repeat)]
            listed = [await timed(volume.versions("config")) for _ in range(repeat)]
        publishes.append((kept, statistics.median(took)))
        lists.append((kept, statistics.median(listed)))
        print(f"{kept:,} versions kept: publish {publishes[-1][1]:.2f} ms", flush=True)
    return publishes, lists


def by_subscribers() -> Points:
    """Return the milliseconds until all are told of one change, by subscribers."""
    told: Points = []
    for count in SUBSCRIBERS:

        def work(pid: int, port: int, path: Path, count: int = count) -> Any:
            return subscribers.tell(subscribers.Listener, port, pid, path, count, 5)

        found = subscribers.alone(sidecar("read", "--max-connections", "100000"), work)
        told.append((count, statistics.median(found.seconds) * 1000))
        print(f"{count:,} subscribers: all told after {told[-1][1]:.1f} ms", flush=True)
    return told


def main() -> None:
    options = arguments(__doc__, repeat=5).parse_args()
    publish, lag, raw = asyncio.run(by_size(options.repeat))
    set_publish, set_lag = asyncio.run(by_files(options.repeat))
    kept_publish, kept_list = asyncio.run(by_kept(options.repeat))
    told = by_subscribers()
    curves = [
        Curve(
            "Size of a content",
            "bytes",
            "ms",
            {"publish": publish, "in the reader's memory": lag, "GET /raw": raw},
        ),
        Curve(
            "Files of a set",
            "files",
            "ms",
            {"publish": set_publish, "in the reader's memory": set_lag},
        ),
        Curve("Subscribers of /events", "subscribers", "ms", {"all are told": told}),
        Curve(
            "Versions kept",
            "versions",
            "ms",
            {"publish": kept_publish, "list of versions": kept_list},
        ),
    ]
    rows = [
        Row(
            "publish with 1,000 versions kept",
            kept_publish[-1][1],
            "ms",
            peer=kept_publish[1][1],
            peer_name="with 1",
            goal_ratio=FLAT,
        ),
        Row("publish of 64 MiB", publish[-1][1], "ms"),
        Row("publish of a set of 10,000 files", set_publish[-1][1], "ms"),
        Row("GET /raw of 64 MiB", raw[-1][1], "ms"),
    ]
    report(rows, options.json, curves)


if __name__ == "__main__":
    main()
