"""A reader at rest: the time to its first answer, its memory, its CPU; and what sets of many files cost.

python benchmarks/footprint.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from _options import arguments
from _rows import Row, cpu_seconds, report, resident, switches
from _servers import available, free_port, gin, plain_aiohttp, side_by_side

SETTLE = 3.0
IDLE = 10.0
SETS = (1, 100, 10_000)

CONSUMER = """
import asyncio, sys
import sidecar
async def main():
    async for snapshot in sidecar.watch(sys.argv[1]):
        print(len(snapshot), flush=True)
asyncio.run(main())
"""


def start(path: Path, port: int) -> tuple[subprocess.Popen[bytes], float]:
    """Start a reader; return it, and the seconds until its first answer."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "sidecar.cli.main", "read", "--path", str(path)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--host", "127.0.0.1", "--drain-delay", "0"],
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return process, time.perf_counter() - begun
        except OSError:
            time.sleep(0.002)


def consume(count: int) -> tuple[float, float, float]:
    """Return share of a core, wake-ups a second and MiB of a program that follows a set of so many files."""
    with tempfile.TemporaryDirectory() as directory:
        for number in range(count):
            Path(directory, f"file-{number}").write_text(str(number))
        process = subprocess.Popen(
            [sys.executable, "-c", CONSUMER, directory], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert int(process.stdout.readline()) == count
            time.sleep(2 * SETTLE)
            woken, spent = switches(process.pid), cpu_seconds(process.pid)
            time.sleep(IDLE)
            share = (cpu_seconds(process.pid) - spent) / IDLE
            return share, (switches(process.pid) - woken) / IDLE, resident(process.pid)
        finally:
            process.terminate()
            process.wait()


def beside() -> dict[str, float]:
    """Return the MiB of others that serve the same file, by name; plain aiohttp is always there."""
    found: dict[str, float] = {}
    with side_by_side(
        available({"gin": gin("reader"), "aiohttp": plain_aiohttp}), b"123"
    ) as places:
        time.sleep(SETTLE)
        for name, (pid, _) in places.items():
            found[name] = resident(pid)
    return found


def main() -> None:
    options = arguments(__doc__, rounds=5).parse_args()
    firsts: list[float] = []
    sizes: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config")
        path.write_text("123")
        for number in range(options.rounds):
            process, first = start(path, free_port())
            firsts.append(first)
            time.sleep(SETTLE)
            sizes.append(resident(process.pid))
            if not number:
                before = cpu_seconds(process.pid)
                time.sleep(IDLE)
                shares.append((cpu_seconds(process.pid) - before) / IDLE)
            process.terminate()
            process.wait()
    peers = beside()
    memory = statistics.median(sizes)
    rows = [
        Row("sidecar read: first answer", statistics.median(firsts), "s", 0.5),
        *(
            Row("sidecar read: memory at rest", memory, "MiB", 40, peer=size, peer_name=name)
            for name, size in peers.items()
        ),
        Row("sidecar read: share of a core at rest", shares[0] * 100, "%", 0.1),
    ]
    for count in SETS:
        share, woken, size = consume(count)
        rows += [
            Row(f"set of {count:,} files: share of a core at rest", share * 100, "%"),
            Row(f"set of {count:,} files: wake-ups at rest", woken, "1/s"),
            Row(f"set of {count:,} files: memory", size, "MiB"),
        ]
    report(rows, options.json)
    print(
        f"on {os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
