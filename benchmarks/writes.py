"""GET /?content= by 64 keep-alive clients, and by one: our writer, durable and not, and the article's, which is not.

    python benchmarks/writes.py [--rounds 5] [--seconds 2] [--json FILE]

Servers on one core, the client (wrk) on another, the servers in turn, several rounds; each write has another content.
What counts is how many writes a second are accepted, and what one of them costs the server.
BENCH_DIR is where they write, else the present directory: it has to lie on a real disk.
What is not installed is left out, and said.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence

from _load import Load, load
from _options import arguments
from _rows import Row, of_rounds, report
from _servers import available, gin, side_by_side, sidecar

CLIENTS = (64, 1)
#: Durable writes a second with 64 clients, as a multiple of those of the article's program.
GOAL = 5.0
#: Writes a second with one client and nothing synced, as a multiple of those of the article's program; and their CPU.
LEAST_ALONE = 0.8
MOST_CPU_ALONE = 2.0
#: Time of a durable write with one client, as a multiple of that of the bare system calls.
MOST_OVER_BARE = 1.25
LEAST_RATIOS = {("durable", "rate", 64): GOAL, ("durability none", "rate", 1): LEAST_ALONE}
MOST_RATIOS = {("durability none", "cost", 1): MOST_CPU_ALONE}
WRITES = """
local number = 0
function request()
  number = number + 1
  return "GET /?content=this+is+content+number+" .. number .. " HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n"
end
"""


def main() -> int:
    options = arguments(__doc__, rounds=5, seconds=2).parse_args()
    os.environ.setdefault("BENCH_DIR", os.getcwd())  # /tmp may lie in memory
    servers = available(
        {
            "durable": sidecar("write"),
            "durability none": sidecar("write", "--durability", "none"),
            "gin": gin("writer"),
        },
        "wrk",
    )
    loads: dict[int, dict[str, list[Load]]] = {clients: {} for clients in CLIENTS}
    least: list[float] = []
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        side_by_side(servers, b"") as places,
    ):
        script.write(WRITES)
        script.flush()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            least.append(bare(options.seconds))
            for clients in CLIENTS:
                for name, (pid, port) in places.items():
                    found = load(
                        pid, port, seconds=options.seconds, connections=clients, script=script.name
                    )
                    loads[clients].setdefault(name, []).append(found)
    rows = [row for clients in CLIENTS for row in compared(clients, loads[clients])]
    durable = [one.median for one in loads[1]["durable"]]
    rows.append(
        of_rounds(
            "p50, 1 clients, durable, beside the bare calls",
            durable,
            "ms",
            peer=statistics.median(least),
            peer_name="create, write, fsync, rename, fsync",
            goal_ratio=MOST_OVER_BARE,
        )
    )
    report(rows, options.json)
    return 0


def bare(seconds: float) -> float:
    """Return the median time (ms) of the calls that a durable replacement cannot do without, in this process."""
    took: list[float] = []
    with tempfile.TemporaryDirectory(dir=os.environ["BENCH_DIR"]) as place:
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.perf_counter()
            fd = os.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
            os.write(fd, b"this is content number %d" % len(took))
            os.fsync(fd)
            os.close(fd)
            os.rename("new", "config", src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            took.append(time.perf_counter() - begun)
        os.close(directory)
    return statistics.median(took) * 1000


def compared(clients: int, loads: Mapping[str, Sequence[Load]]) -> list[Row]:
    """Return rate, cost and latency of ours beside those of the article's program."""
    rows = []
    for name in ("durable", "durability none"):
        for what, unit, field in (
            ("writes a second", "/s", "rate"),
            ("CPU a write", "µs", "cost"),
            ("p50", "ms", "median"),
            ("p99", "ms", "p99"),
        ):
            numbers = {who: [getattr(one, field) for one in found] for who, found in loads.items()}
            peer = statistics.median(numbers["gin"]) if "gin" in numbers else None
            case = (name, field, clients)
            rows.append(
                of_rounds(
                    f"{what}, {clients} clients, {name}",
                    numbers[name],
                    unit,
                    peer=peer,
                    peer_name="gin, not durable" if peer is not None else "",
                    least_ratio=LEAST_RATIOS.get(case),
                    goal_ratio=MOST_RATIOS.get(case),
                )
            )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
