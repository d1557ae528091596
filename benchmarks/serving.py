"""GET / by 64 keep-alive clients: our reader, nginx with a static file, the article's Gin program, plain aiohttp.

    python benchmarks/serving.py [--rounds 5] [--seconds 3] [--json FILE]

Servers on one core, the client (wrk) on another, the servers in turn, several rounds.
What counts is the CPU time of the server for one request: it depends least on the client and on the machine.
What is not installed is left out, and said.
"""

from __future__ import annotations

import statistics
import urllib.request
from collections.abc import Sequence

from _load import Load, load
from _options import arguments
from _rows import Row, report
from _servers import available, gin, nginx, plain_aiohttp, side_by_side, sidecar

CASES = {
    "GET /, 3 bytes": (b"123", False),
    "GET /, 3 bytes, 304": (b"123", True),
    "GET /, 1 KiB": (b"x" * (1 << 10), False),
    "GET /, 64 KiB": (b"x" * (64 << 10), False),
}
#: The article's reader and the plain one know no entity tags.
KNOW_TAGS = ("sidecar", "nginx")


def main() -> int:
    options = arguments(__doc__, rounds=5, seconds=2).parse_args()
    servers = available(
        {
            "sidecar": sidecar("read"),
            "nginx": nginx,
            "gin": gin("reader"),
            "aiohttp": plain_aiohttp,
        },
        "wrk",
    )
    rows: list[Row] = []
    for what, (content, conditional) in CASES.items():
        with side_by_side(servers, content) as places:
            loads: dict[str, list[Load]] = {}
            for number in range(options.rounds):
                print(f"{what}: round {number + 1} of {options.rounds}", flush=True)
                for name, (pid, port) in places.items():
                    if conditional and name not in KNOW_TAGS:
                        continue
                    known = (f"If-None-Match: {etag(port)}",) if conditional else ()
                    found = load(pid, port, seconds=options.seconds, headers=known)
                    loads.setdefault(name, []).append(found)
        rows += compared(what, loads)
    report(rows, options.json)
    return 0


def compared(what: str, loads: dict[str, list[Load]]) -> list[Row]:
    """Return cost, latency and rate of one case beside each peer's."""
    ours = loads.pop("sidecar")
    goals = {"nginx": 1.0, "gin": 0.33}
    rows = [
        Row(
            f"{what}: CPU a request",
            *_median([one.cost for one in ours]),
            peer=statistics.median(one.cost for one in theirs),
            peer_name=name,
            low=min(one.cost for one in ours),
            high=max(one.cost for one in ours),
            goal_ratio=goals.get(name),
        )
        for name, theirs in loads.items()
    ]
    for name, theirs in loads.items():
        rows.append(
            Row(
                f"{what}: p99",
                statistics.median(one.p99 for one in ours),
                "ms",
                peer=statistics.median(one.p99 for one in theirs),
                peer_name=name,
                goal_ratio=1.2 if name == "nginx" else None,
            )
        )
        rows.append(
            Row(
                f"{what}: requests a second",
                statistics.median(one.rate for one in ours),
                "1/s",
                peer=statistics.median(one.rate for one in theirs),
                peer_name=name,
            )
        )
    return rows


def _median(values: Sequence[float]) -> tuple[float, str]:
    return statistics.median(values), "µs"


def etag(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return str(answer.headers["ETag"])


if __name__ == "__main__":
    raise SystemExit(main())
