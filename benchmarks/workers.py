"""GET / by 64 keep-alive clients: one worker, and as many as there are cores, up to four.

    python benchmarks/workers.py [--rounds 5] [--seconds 2] [--json FILE]

Each worker is pinned to a core of its own. The client (wrk) needs about as much CPU time for a request
as a worker that answers from the fast path, so beside as many workers as cores it takes half of their time,
and the requests a second cannot grow on this machine. What is given instead is how many there are for a second
of CPU time of the busiest worker: what all would answer together if the client ran elsewhere.
It does not grow with the workers if one of them gets all connections, or if a request costs more beside others.

The same is measured with a request that the fast path does not answer (`Range`), and costs a worker many times more
than the client: there the requests a second of the clock must grow as well.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from _options import arguments
from _rows import Row, cpu_seconds, of_rounds, report
from _servers import available, free_port, sidecar

GOAL = 1.7
"""Times the requests of one worker that two are to answer."""
CONNECTIONS = 64
CASES = {"GET /": (), "GET / without the fast path": ("-H", "Range: bytes=0-")}


@dataclass(frozen=True)
class Round:
    """Requests a second; the same a second of CPU time of the busiest worker; the client's part of all cores."""

    rate: float
    capacity: float
    client: float


Rounds = dict[tuple[str, int], list[Round]]


def main() -> int:
    options = arguments(__doc__, rounds=5, seconds=2).parse_args()
    cores = sorted(os.sched_getaffinity(0))[:4]
    if len(cores) < 2:
        print("there is one core: several workers would only share it")
        return 1
    available({}, "wrk")
    counts = (1, len(cores))
    rounds: Rounds = {}
    pids: dict[int, list[int]] = {}
    with ExitStack() as stack:
        places = {}
        for count in counts:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (workdir / "config").write_text("123")
            port = free_port()
            server = sidecar("read", "--workers", str(count))(workdir, port)
            pid = stack.enter_context(server)
            places[count] = (pinned(pid, count, cores), port)
            pids[count] = [pid, *children(pid)]
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            for what, more in CASES.items():
                for count, (workers, port) in places.items():
                    apart = cores[1:] if count == 1 else cores
                    found = measure(workers, port, options.seconds, apart, more)
                    rounds.setdefault((what, count), []).append(found)
        memory = {count: proportional(found) for count, found in pids.items()}
    report(rows(rounds, memory, len(cores)), options.json)
    return 0


def rows(rounds: Rounds, memory: dict[int, float], most: int) -> list[Row]:
    found = [
        Row(
            f"{most} workers: memory, of shared pages their part",
            memory[most],
            "MiB",
            peer=memory[1],
            peer_name="one worker",
        )
    ]
    goal = GOAL * most / 2
    for what in CASES:
        one, several = rounds[what, 1], rounds[what, most]
        client = statistics.median(each.client for each in several) * 100
        by_clock = what != "GET /"
        found += [
            of_rounds(
                f"{most} workers: {what}, a second of CPU of the busiest",
                [each.capacity for each in several],
                "1/s",
                peer=statistics.median(each.capacity for each in one),
                peer_name="one worker",
                least_ratio=goal,
            ),
            of_rounds(
                f"{most} workers: {what}, a second, beside a client that takes {client:.0f} % of the cores",
                [each.rate for each in several],
                "1/s",
                peer=statistics.median(each.rate for each in one),
                peer_name="one worker",
                least_ratio=goal if by_clock else None,
            ),
        ]
    return found


def measure(
    workers: Sequence[int], port: int, seconds: int, cores: Sequence[int], more: Sequence[str]
) -> Round:
    """Send requests from some cores, and see what was answered and what it cost."""
    before = [cpu_seconds(pid) for pid in workers]
    client = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["taskset", "-c", ",".join(map(str, cores)), "wrk", f"-t{len(cores)}"]
    printed = subprocess.run(
        [*command, f"-c{CONNECTIONS}", f"-d{seconds}s", *more, f"http://127.0.0.1:{port}/"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    spent = [cpu_seconds(pid) - used for pid, used in zip(workers, before, strict=True)]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"(\d+) requests in ([\d.]+)s", printed)
    if found is None or re.search(r"Socket errors|Non-2xx", printed):
        raise RuntimeError(f"wrk could not measure: {printed}")
    answered, lasted = int(found[1]), float(found[2])
    used = after.ru_utime - client.ru_utime + after.ru_stime - client.ru_stime
    return Round(
        answered / lasted,
        answered / max(spent),
        used / lasted / len(os.sched_getaffinity(0)),
    )


def pinned(pid: int, count: int, cores: Sequence[int]) -> list[int]:
    """Give each worker of a program a core, and return their process numbers."""
    workers = [pid]
    if count > 1:
        limit = time.monotonic() + 10
        while len(workers := children(pid)) < count and time.monotonic() < limit:
            time.sleep(0.01)
    for worker, core in zip(workers, cores, strict=False):
        for thread in Path(f"/proc/{worker}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})
    return workers


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def proportional(pids: Sequence[int]) -> float:
    """Return the memory of processes in MiB, with their part of the pages that they share."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024


if __name__ == "__main__":
    sys.exit(main())
