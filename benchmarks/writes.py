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
from collections.abc import Mapping, Sequence

from _load import Load, load
from _options import arguments
from _rows import Row, of_rounds, report
from _servers import available, gin, side_by_side, sidecar

CLIENTS = (64, 1)
#: Durable writes a second with 64 clients, as a multiple of those of the article's program.
GOAL = 5.0
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
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        side_by_side(servers, b"") as places,
    ):
        script.write(WRITES)
        script.flush()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            for clients in CLIENTS:
                for name, (pid, port) in places.items():
                    found = load(
                        pid, port, seconds=options.seconds, connections=clients, script=script.name
                    )
                    loads[clients].setdefault(name, []).append(found)
    report([row for clients in CLIENTS for row in compared(clients, loads[clients])], options.json)
    return 0


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
            goal = (name, field, clients) == ("durable", "rate", 64)
            rows.append(
                of_rounds(
                    f"{what}, {clients} clients, {name}",
                    numbers[name],
                    unit,
                    peer=peer,
                    peer_name="gin, not durable" if peer is not None else "",
                    least_ratio=GOAL if goal else None,
                )
            )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
