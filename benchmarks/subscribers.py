"""Those who wait for a change, as event streams and as long-polls: how soon all have it, and what one costs.

    python benchmarks/subscribers.py [--subscribers 10000] [--json FILE]

And whether a storm of changes ends on the last one for everybody.
The peer is an aiohttp application of thirty lines that does the same with a handler for each client:
same event loop, same way to notice a change.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from _options import arguments
from _rows import Row, cpu_seconds, of_rounds, report, resident
from _servers import Server, cores, free_port, running, sidecar

SETTLE = 3.0
"""Seconds before memory is measured: after its start, a program of ours gives some back."""

PLAIN = """
import asyncio, json, sys, uvloop
from aiohttp import web
import sidecar
path, port = sys.argv[1], int(sys.argv[2])
class Now: event = None; wire = b""; etag = text = ""
async def events(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    known = b""
    while True:
        waiting = Now.event
        if Now.wire != known:
            known = Now.wire
            try:
                await response.write(known)
            except ConnectionError:
                return response
            continue
        await waiting.wait()
async def poll(request):
    while request.headers.get("If-None-Match") == Now.etag:
        await Now.event.wait()
    return web.json_response(Now.text, headers={"ETag": Now.etag})
async def follow(app):
    Now.event = asyncio.Event()
    async def run():
        async for snapshot in sidecar.watch(path):
            Now.wire = f"id: {snapshot.etag}\\nevent: content\\ndata: {json.dumps(snapshot.text())}\\n\\n".encode()
            Now.etag, Now.text = snapshot.etag, snapshot.text()
            event, Now.event = Now.event, asyncio.Event()
            event.set()
    task = asyncio.create_task(run())
    yield
    task.cancel()
app = web.Application()
app.cleanup_ctx.append(follow)
app.add_routes([web.get("/events", events), web.get("/", poll)])
async def main():
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


class Client(asyncio.Protocol):
    """Remembers whether it has what is wanted."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.transport: Any = None
        self.done = False

    def has(self, found: bool) -> None:
        if found and not self.done:
            self.done = True
            self.crowd.one_has_it()


class Listener(Client):
    """Hears of each change over a stream of events."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b"GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.crowd.messages += data.count(b"\nevent: content\n")
        self.tail = (self.tail + data)[-len(self.crowd.wanted) - 64 :]
        self.has(b"data: " + self.crowd.wanted + b"\n" in self.tail)


class Poller(Client):
    """Asks for something newer than it has, and asks again when it was answered."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.crowd.messages += 1
        self.has(data.endswith(self.crowd.wanted))
        etag = data[data.lower().index(b"\r\netag: ") + 8 :].split(b"\r\n", 1)[0]
        self.transport.write(
            b"GET / HTTP/1.1\r\nHost: a\r\nPrefer: wait=60\r\nIf-None-Match: %b\r\n\r\n" % etag
        )


class Crowd:
    """All clients, and how many of them have what is wanted."""

    def __init__(self) -> None:
        self.wanted = b"-"
        self.members: list[Client] = []
        self.messages = 0
        self.missing = 0
        self.all = asyncio.Event()

    def want(self, text: str) -> None:
        self.wanted = f'"{text}"'.encode()
        self.missing = len(self.members)
        self.all.clear()
        for member in self.members:
            member.done = False

    def one_has_it(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.all.set()

    async def grow(self, kind: type[Client], port: int, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.wanted = b'"start"'
        self.missing = count
        for begun in range(0, count, 100):
            made = await asyncio.gather(
                *(
                    loop.create_connection(lambda: kind(self), "127.0.0.1", port)
                    for _ in range(min(100, count - begun))
                )
            )
            self.members += [one[1] for one in made]
        await asyncio.wait_for(self.all.wait(), 60)

    async def leave(self) -> None:
        for member in self.members:
            member.transport.abort()
        await asyncio.sleep(1)


def place(path: Path, text: str) -> None:
    draft = path.with_name(".draft")
    draft.write_text(text)
    draft.rename(path)


@dataclass
class Told:
    """What a change has cost: seconds until all had it, µs of CPU and KiB of memory for each of them."""

    seconds: list[float]
    cost: float
    each: float


async def tell(
    kind: type[Client], port: int, pid: int, path: Path, count: int, rounds: int
) -> Told:
    place(path, "start")
    await asyncio.sleep(SETTLE)
    crowd, before = Crowd(), resident(pid)
    await crowd.grow(kind, port, count)
    await asyncio.sleep(1)
    each = (resident(pid) - before) * 1024 / count
    times: list[float] = []
    spent = cpu_seconds(pid)
    for number in range(rounds):
        crowd.want(f"round {number}")
        begun = time.perf_counter()
        place(path, f"round {number}")
        await asyncio.wait_for(crowd.all.wait(), 30)
        times.append(time.perf_counter() - begun)
        await asyncio.sleep(0.5)
    cost = (cpu_seconds(pid) - spent) / rounds / count * 1e6
    await crowd.leave()
    return Told(times, cost, each)


async def storm(port: int, path: Path, count: int, changes: int) -> tuple[float, int, float]:
    """Make 1,000 changes a second; return seconds until all had the last, who missed it, and messages each."""
    place(path, "start")
    await asyncio.sleep(0.5)
    crowd = Crowd()
    await crowd.grow(Listener, port, count)
    crowd.messages = 0
    crowd.want(f"change {changes - 1}")
    begun = time.perf_counter()
    for number in range(changes):
        place(path, f"change {number}")
        await asyncio.sleep(max(0.0, begun + (number + 1) / 1000 - time.perf_counter()))
    ended = time.perf_counter()
    with suppress(TimeoutError):
        await asyncio.wait_for(crowd.all.wait(), 30)
    late = time.perf_counter() - ended
    await crowd.leave()
    return late, crowd.missing, crowd.messages / count


@contextmanager
def plain(workdir: Path, port: int) -> Iterator[int]:
    with running([sys.executable, "-c", PLAIN, str(workdir / "config"), str(port)], port) as pid:
        yield pid


def run(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one server does, started anew for each: memory that was used before is used again."""
    count, rounds = options.subscribers, options.rounds
    works: dict[str, Callable[[int, int, Path], Any]] = {
        "streams": lambda pid, port, path: tell(Listener, port, pid, path, count, rounds),
        "polls": lambda pid, port, path: tell(Poller, port, pid, path, count, rounds),
        "storm": lambda _, port, path: storm(port, path, options.storm, 2000),
    }
    return {name: alone(server, work) for name, work in works.items()}


def alone(server: Server, work: Callable[[int, int, Path], Any]) -> Any:
    """Start a server, and return what a crowd on the other core finds out about it."""
    here = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as directory:
        path, port = Path(directory) / "config", free_port()
        place(path, "start")
        with server(Path(directory), port) as pid:
            os.sched_setaffinity(0, {cores()[1]})
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    return runner.run(work(pid, port, path))
            finally:
                os.sched_setaffinity(0, here)


def main() -> None:
    parser = arguments(__doc__, subscribers=10_000, rounds=10)
    parser.add_argument("--storm", type=int, default=1000, help="subscribers of the storm")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = (1 << 30 if hard == resource.RLIM_INFINITY else hard) - 200
    if limit < options.subscribers:
        print(f"only {limit} subscribers: this user may not open more files")
        options.subscribers = limit
    theirs = run(plain, options)
    ours = run(sidecar("read", "--max-connections", "100000"), options)
    peer = "aiohttp"
    rows: list[Row] = []
    for kind, name, goal in (("streams", "event streams", 10.0), ("polls", "long-polls", 10.0)):
        mine, other = ours[kind], theirs[kind]
        what = f"{options.subscribers:,} {name}"
        rows += [
            of_rounds(f"{what}: all have a change after", mine.seconds, "s", goal=0.5,
                      peer=statistics.median(other.seconds), peer_name=peer),
            Row(f"{what}: the worst of {options.rounds} changes", max(mine.seconds), "s", 0.5,
                max(other.seconds), peer),
            Row(f"{what}: CPU to tell one", mine.cost, "µs", None, other.cost, peer),
            Row(f"{what}: memory of one", mine.each, "KiB", goal, other.each, peer),
        ]  # fmt: skip
    late, missing, messages = ours["storm"]
    rows += [
        Row(f"1,000 changes/s, {options.storm:,} streams: all have the last after", late, "s", 0.5,
            theirs["storm"][0], peer),
        Row("… streams that miss it", missing, "", 0, theirs["storm"][1], peer),
        Row("… messages to each, of 2,000 changes", messages, "", None, theirs["storm"][2], peer),
    ]  # fmt: skip
    report(rows, options.json)


if __name__ == "__main__":
    main()
