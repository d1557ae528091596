"""How the CPU time of reading a gzip archive grows with its content: four times as much should take four times as long.

    python benchmarks/logs_gzip.py [--megabytes 16] [--rounds 5] [--json FILE]

A collection in this process reads an archive to its end for sinks that keep nothing; user and system time count, the best of some rounds.
Long lines, groups and several sinks make a reader go back; what it decompresses again would grow with the square.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import tempfile
import time
from pathlib import Path

from _options import arguments
from _rows import Row, report

from sidecar import logs

FACTOR = 4
GOAL = FACTOR * 1.2
CASES = {
    "lines of 256 bytes": (256, 1, None),
    "lines of 256 bytes, 3 sinks": (256, 3, None),
    "lines of 700 kB": (700_000, 1, None),
    "lines of 700 kB, 3 sinks": (700_000, 3, None),
    "lines of 3 MB, in pieces": (3_000_000, 1, None),
    "groups of lines": (256, 1, logs.Multiline(start="^begin")),
    "groups of lines, 3 sinks": (256, 3, logs.Multiline(start="^begin")),
}


class Discard(logs.BaseSink):
    """A sink that takes each batch as bytes and keeps nothing."""

    takes_blocks = True

    def __init__(self, number: int) -> None:
        self.name = f"discard-{number}"

    async def write(self, batch: logs.Batch) -> logs.Receipt:
        del batch
        return logs.ACCEPTED


def main() -> None:
    options = arguments(__doc__, megabytes=16, rounds=5).parse_args()
    rows = []
    for name, (width, sinks, rule) in CASES.items():
        costs = []
        for size in (options.megabytes, FACTOR * options.megabytes):
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory, "app.log.gz")
                write(path, size * 1_000_000, width)
                asyncio.run(read(path, sinks, rule))  # what is imported and allocated once
                costs.append([cost(path, sinks, rule) for _ in range(options.rounds)])
        small, large = map(min, costs)
        print(f"{name}: {small:.3f} s and {large:.3f} s of CPU", flush=True)
        rows.append(Row(f"gzip, {name}: {FACTOR} times the content", large / small, "×", GOAL))
    report(rows, options.json)


def write(path: Path, size: int, width: int) -> None:
    chance = random.Random(width)
    with gzip.open(path, "wb", 1) as file:
        while size > 0:
            head = b"begin %d " % chance.getrandbits(60) if chance.random() < 0.2 else b"  "
            line = head + chance.randbytes(width // 4).hex().encode()
            line = (line * 2)[: width - 1] + b"\n"
            file.write(line)
            size -= len(line)


def cost(path: Path, sinks: int, rule: logs.Multiline | None) -> float:
    begun = time.process_time()
    asyncio.run(read(path, sinks, rule))
    return time.process_time() - begun


async def read(path: Path, sinks: int, rule: logs.Multiline | None) -> None:
    source = logs.tail(path, multiline=rule)
    await logs.collect(source, sink=[Discard(number) for number in range(sinks)], until_end=True)


if __name__ == "__main__":
    main()
