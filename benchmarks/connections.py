"""Connections without a request: what an idle one costs, and whether slow heads slow anybody down.

    python benchmarks/connections.py [--idle 10000] [--slow 1000] [--seconds 60] [--json FILE]

A crowd, a process of its own, holds connections of which each has asked once, and then adds the slow heads:
each sends a byte a second, and when it is closed it comes back at once, so there are always that many.
Meanwhile good clients ask in this process; the crowd has the lowest priority, to be no reason for their waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import uvloop
from _options import arguments
from _rows import Row, cpu_seconds, percentile, report, resident
from _servers import available, cores, nginx, plain_aiohttp, side_by_side, sidecar

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CONTENT = b"123"
GOOD = 10
PAUSE = 0.02
"""Seconds between two requests of a good client: 500 a second together."""
CALM = 10.0
"""Seconds of measuring without slow heads."""
SETTLE = 4.0
HEAD_TIMEOUT = 10.0
AT_A_TIME = 100


class Idle(asyncio.Protocol):
    """Asks, and says nothing more until it is told to ask again."""

    transport: Any
    answered: asyncio.Future[None]

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> asyncio.Future[None]:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(ASK)
        return self.answered

    def data_received(self, data: bytes) -> None:
        if data.endswith(b'"123"') and not self.answered.done():
            self.answered.set_result(None)


class Slow(asyncio.Protocol):
    """Begins a request and never ends it; notes how long it was let."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.answer = b""
        self.begun = 0.0
        self.rest: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.begun = time.monotonic()
        transport.write(b"GET / HTTP/1.1\r\nX: ")
        self.go_on(transport)

    def go_on(self, transport: Any) -> None:
        self.rest = asyncio.get_running_loop().call_later(1.0, self.go_on, transport)
        transport.write(b"x")

    def data_received(self, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, _: Exception | None) -> None:
        if self.rest is not None:
            self.rest.cancel()
        self.crowd.one_was_closed(time.monotonic() - self.begun, self.answer)


class Crowd:
    """All connections but those of the good clients."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Idle] = []
        self.lasted: list[float] = []
        self.unanswered = 0
        self.open = 0
        self.until = 0.0
        self.coming: set[asyncio.Task[None]] = set()

    async def hold(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        for begun in range(0, count, AT_A_TIME):
            made = await asyncio.gather(
                *(
                    loop.create_connection(Idle, "127.0.0.1", self.port)
                    for _ in range(min(AT_A_TIME, count - begun))
                )
            )
            self.idle += [one[1] for one in made]
            await asyncio.gather(*(one[1].answered for one in made))

    async def refresh(self) -> None:
        """Let the idle ones ask again: none is to reach the end of its keep-alive time while it is measured."""
        await asyncio.gather(*(one.ask() for one in self.idle))

    async def slow(self, count: int, seconds: float) -> None:
        """Have that many slow heads for so long; then wait for the last of them to be closed."""
        self.until = time.monotonic() + seconds
        for _ in range(count):
            self.come()
        while time.monotonic() < self.until + HEAD_TIMEOUT + 5 and (
            self.open or self.coming or time.monotonic() < self.until
        ):
            await asyncio.sleep(0.1)

    def come(self) -> None:
        task = asyncio.create_task(self.connect())
        self.coming.add(task)
        task.add_done_callback(self.coming.discard)

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Slow(self), "127.0.0.1", self.port)
        self.open += 1

    def one_was_closed(self, lasted: float, answer: bytes) -> None:
        self.open -= 1
        self.lasted.append(lasted)
        self.unanswered += not answer.startswith(b"HTTP/1.1 408 ")
        if time.monotonic() < self.until:
            self.come()


async def be_the_crowd(port: int, idle: int) -> None:
    """Hold connections, say so, do what the next line says, and report."""
    crowd = Crowd(port)
    await crowd.hold(idle)
    print("held", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        slow, seconds = line.split()
        await crowd.refresh()
        print("begins", flush=True)
        await crowd.slow(int(slow), float(seconds))
        found = {
            "heads": len(crowd.lasted),
            "soonest": min(crowd.lasted),
            "latest": max(crowd.lasted),
            "never": crowd.open,
            "unanswered": crowd.unanswered,
            "lost": sum(one.transport.is_closing() for one in crowd.idle),
        }
        print(json.dumps(found), flush=True)


async def good_clients(port: int, over: asyncio.Event) -> list[float]:
    """Ask until it is over; return the time of each request in milliseconds."""
    times: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(PAUSE * number / GOOD)
        while not over.is_set():
            begun = time.perf_counter()
            writer.write(ASK)
            await reader.readuntil(b'"123"')
            times.append((time.perf_counter() - begun) * 1e3)
            await asyncio.sleep(PAUSE)
        writer.close()

    await asyncio.gather(*map(one, range(GOOD)))
    return times


async def calm(port: int) -> list[float]:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(CALM, over.set)
    return await good_clients(port, over)


async def stormy(
    port: int, crowd: subprocess.Popen[str], slow: int, seconds: float
) -> tuple[list[float], dict[str, Any]]:
    """Return the times of good clients beside slow heads, and what became of those."""
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    loop = asyncio.get_running_loop()
    crowd.stdin.write(f"{slow} {seconds}\n")
    crowd.stdin.flush()
    await loop.run_in_executor(None, crowd.stdout.readline)
    over = asyncio.Event()
    good = asyncio.create_task(good_clients(port, over))
    line = await loop.run_in_executor(None, crowd.stdout.readline)
    over.set()
    return await good, json.loads(line)


def measure(
    place: tuple[int, int], idle: int, slow: int, seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the numbers of one server, and what became of its slow heads, if it was to have any."""
    pid, port = place
    found: dict[str, float] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(calm(port))  # it has seen everything once
        found["alone"] = percentile(runner.run(calm(port)), 99)
        before = resident(pid)
        crowd = subprocess.Popen(
            [sys.executable, __file__, "--crowd", str(port), "--idle", str(idle)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.setpriority(os.PRIO_PROCESS, crowd.pid, 19)
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "held\n"
            time.sleep(SETTLE)
            found["each"] = (resident(pid) - before) * 1024 / idle
            found["beside idle"] = percentile(runner.run(calm(port)), 99)
            if not slow:
                return found, {}
            spent, begun = cpu_seconds(pid), time.monotonic()
            times, heads = runner.run(stormy(port, crowd, slow, seconds))
            found["share"] = (cpu_seconds(pid) - spent) / (time.monotonic() - begun) * 100
            found["beside slow"], found["worst"] = percentile(times, 99), max(times)
            return found, heads
        finally:
            crowd.kill()
            crowd.wait()


def main() -> None:
    parser = arguments(__doc__, idle=10_000, slow=1000, seconds=60.0)
    parser.add_argument("--alone", action="store_true", help="leave the peers out")
    parser.add_argument("--crowd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.crowd:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(be_the_crowd(options.crowd, options.idle))
        return
    wanted = options.idle + options.slow + GOOD + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        sys.exit(f"this user may open {hard} files, and {wanted} are needed (`ulimit -Hn`)")
    limit = str(options.idle + options.slow + 100)
    servers = {"sidecar": sidecar("read", "--max-connections", limit)}
    if not options.alone:
        servers |= {"aiohttp": plain_aiohttp, "nginx": nginx}
    here = os.sched_getaffinity(0)
    results: dict[str, dict[str, float]] = {}
    heads: dict[str, Any] = {}
    for name, server in available(servers).items():
        with side_by_side({name: server}, CONTENT) as places:
            os.sched_setaffinity(0, {cores()[1]})
            slow = options.slow if name == "sidecar" else 0
            results[name], found = measure(places[name], options.idle, slow, options.seconds)
            heads |= found
            os.sched_setaffinity(0, here)
    ours = results.pop("sidecar")
    peer, theirs = next(reversed(results.items()), ("", {}))
    rows = [
        Row("an idle connection", ours["each"], "KiB", 8, theirs.get("each"), peer),
        Row("good clients alone: p99", ours["alone"], "ms", None, theirs.get("alone"), peer),
        Row(f"… beside {options.idle:,} idle connections: p99", ours["beside idle"], "ms", 10,
            theirs.get("beside idle"), peer),
        Row(f"… and {options.slow:,} slow heads: p99", ours["beside slow"], "ms", 10),
        Row(f"… and {options.slow:,} slow heads: worst", ours["worst"], "ms"),
        Row("slow heads: the soonest closed after", heads["soonest"], "s", least=HEAD_TIMEOUT - 0.1),
        Row("slow heads: the latest closed after", heads["latest"], "s", HEAD_TIMEOUT + 1),
        Row("slow heads: never closed, or without 408", heads["never"] + heads["unanswered"], "", 0),
        Row("idle connections lost meanwhile", heads["lost"], "", 0),
        Row("share of a core meanwhile", ours["share"], "%"),
    ]  # fmt: skip
    report(rows, options.json)
    print(f"{heads['heads']:,} slow heads were closed; on {os.cpu_count()} cores;", end=" ")
    print(
        "; ".join(
            f"{name}: {found['each']:.2f} KiB a connection" for name, found in results.items()
        )
    )


if __name__ == "__main__":
    main()
