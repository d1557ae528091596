"""GET / by 64 keep-alive clients: our reader, nginx with a static file, the article's Gin program, plain aiohttp.

    python benchmarks/serving.py [--rounds 5] [--seconds 3] [--json FILE]

Servers on one core, the client (wrk) on another, the servers in turn, several rounds.
What counts is the CPU time of the server for one request: it depends least on the client and on the machine.
What is not installed is left out, and said.
"""

from __future__ import annotations

import statistics
import urllib.request

from _load import Load, load
from _options import arguments
from _rows import Row, of_rounds, report
from _servers import available, gin, nginx, plain_aiohttp, side_by_side, sidecar

CASES = {
    "GET /, 3 bytes": (b"123", False),
    "GET /, 3 bytes, 304": (b"123", True),
    "GET /, 1 KiB": (b"x" * (1 << 10), False),
    "GET /, 64 KiB": (b"x" * (64 << 10), False),
}
MEASURED = (
    ("cost", "CPU a request", "µs"),
    ("p99", "p99", "ms"),
    ("rate", "requests a second", "1/s"),
)
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
    goals = {("cost", "nginx"): 1.0, ("cost", "gin"): 0.33, ("p99", "nginx"): 1.2}
    return [
        of_rounds(
            f"{what}: {words}",
            [getattr(one, field) for one in ours],
            unit,
            peer=statistics.median(getattr(one, field) for one in theirs),
            peer_name=name,
            goal_ratio=goals.get((field, name)),
        )
        for field, words, unit in MEASURED
        for name, theirs in loads.items()
    ]


def etag(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return str(answer.headers["ETag"])


if __name__ == "__main__":
    raise SystemExit(main())
