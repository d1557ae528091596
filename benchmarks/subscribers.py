"""Event streams: how soon all have a change, what one costs, and whether a storm of changes ends on the last.

    python benchmarks/subscribers.py --subscribers 10000 --json result.json

Server and clients have a core each, where there are two. The peer is an aiohttp application of twenty lines
that does the same with a handler for each client: same event loop, same way to notice a change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PLAIN = """
import asyncio, json, sys, uvloop
from aiohttp import web
import sidecar
path, port = sys.argv[1], int(sys.argv[2])
class Now: event = None; wire = b""
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
async def follow(app):
    Now.event = asyncio.Event()
    async def run():
        async for snapshot in sidecar.watch(path):
            Now.wire = f"id: {snapshot.etag}\\nevent: content\\ndata: {json.dumps(snapshot.text())}\\n\\n".encode()
            event, Now.event = Now.event, asyncio.Event()
            event.set()
    task = asyncio.create_task(run())
    yield
    task.cancel()
app = web.Application()
app.cleanup_ctx.append(follow)
app.add_routes([web.get("/events", events)])
async def main():
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


class Listener(asyncio.Protocol):
    """One client: it remembers when it has last been told, and of what."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.tail = b""
        self.done = False

    def connection_made(self, transport: Any) -> None:
        transport.write(b"GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.crowd.messages += data.count(b"\nevent: content\n")
        self.tail = (self.tail + data)[-len(self.crowd.wanted) - 64 :]
        if not self.done and self.crowd.wanted in self.tail:
            self.done = True
            self.crowd.one_has_it()


class Crowd:
    """All clients, and how many of them have what is wanted."""

    def __init__(self) -> None:
        self.wanted = b"-"
        self.members: list[Listener] = []
        self.transports: list[asyncio.Transport] = []
        self.messages = 0
        self.missing = 0
        self.all = asyncio.Event()

    def want(self, text: str) -> None:
        self.wanted = f'data: "{text}"\n'.encode()
        self.missing = len(self.members)
        self.all.clear()
        for member in self.members:
            member.done = False

    def one_has_it(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.all.set()

    async def grow(self, port: int, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.wanted = b'data: "start"\n'
        self.missing = count
        for begun in range(0, count, 100):
            made = await asyncio.gather(
                *(
                    loop.create_connection(lambda: Listener(self), "127.0.0.1", port)
                    for _ in range(min(100, count - begun))
                )
            )
            self.transports += [one[0] for one in made]
            self.members += [one[1] for one in made]
        await asyncio.wait_for(self.all.wait(), 60)


def place(path: Path, text: str) -> None:
    draft = path.with_name(".draft")
    draft.write_text(text)
    draft.rename(path)


def rss(pid: int) -> int:
    """Return resident bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))


def cpu(pid: int) -> float:
    """Return the processor's seconds that a process has used: they do not depend on what else runs here."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, path: Path, subscribers: int, rounds: int) -> dict[str, Any]:
    crowd = Crowd()
    before = rss(pid)
    await crowd.grow(port, subscribers)
    await asyncio.sleep(1)
    each = (rss(pid) - before) / subscribers
    times = []
    spent = cpu(pid)
    for number in range(rounds):
        crowd.want(f"round {number}")
        begun = time.perf_counter()
        place(path, f"round {number}")
        await asyncio.wait_for(crowd.all.wait(), 30)
        times.append(time.perf_counter() - begun)
        await asyncio.sleep(0.3)
    spent = cpu(pid) - spent
    for transport in crowd.transports:
        transport.abort()
    return {
        "subscribers": subscribers,
        "bytes_each": round(each),
        "cpu_each_us": round(spent / rounds / subscribers * 1e6, 1),
        "told_all_s": {
            "median": statistics.median(times),
            "worst": max(times),
            "rounds": rounds,
        },
    }


async def storm(port: int, path: Path, subscribers: int, changes: int) -> dict[str, Any]:
    """1,000 changes a second: who ends on the last, and how long after it."""
    place(path, "start")
    await asyncio.sleep(0.5)
    crowd = Crowd()
    await crowd.grow(port, subscribers)
    crowd.messages = 0
    crowd.want(f"change {changes - 1}")
    begun = time.perf_counter()
    for number in range(changes):
        place(path, f"change {number}")
        await asyncio.sleep(max(0.0, begun + (number + 1) / 1000 - time.perf_counter()))
    lasted = time.perf_counter() - begun
    late = 0.0
    try:
        await asyncio.wait_for(crowd.all.wait(), 30)
        late = time.perf_counter() - begun - lasted
    except TimeoutError:
        pass
    for transport in crowd.transports:
        transport.abort()
    return {
        "subscribers": subscribers,
        "changes_per_s": round(changes / lasted),
        "missed_the_last": crowd.missing,
        "all_have_it_after_s": round(late, 4),
        "messages_each": round(crowd.messages / subscribers, 1),
    }


def serve(kind: str, path: Path, port: int) -> subprocess.Popen[bytes]:
    command = (
        [sys.executable, "-m", "sidecar.cli", "read", "--path", path, "--host", "127.0.0.1",
         "--port", port, "--max-connections", 100_000, "--drain-delay", 0, "--log-level", "warning"]
        if kind == "sidecar"
        else [sys.executable, "-c", PLAIN, path, port]
    )  # fmt: skip
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            time.sleep(3)  # past the start: it gives memory back then
            return process
    raise RuntimeError(f"{kind} does not listen")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run(kind: str, subscribers: int, rounds: int, stormed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config"
        place(path, "start")
        port = free_port()
        process = serve(kind, path, port)
        cores = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {max(cores)})
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found = runner.run(measure(port, process.pid, path, subscribers, rounds))
                if stormed:
                    found["storm"] = runner.run(storm(port, path, stormed, 2000))
            return found
        finally:
            os.sched_setaffinity(0, cores)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--storm", type=int, default=1000, help="subscribers of the storm, 0: none")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = (1 << 30 if hard == resource.RLIM_INFINITY else hard) - 200
    subscribers = min(options.subscribers, room)
    if subscribers < options.subscribers:
        print(f"only {subscribers} subscribers: this user may not open more files")
    results = {
        kind: run(kind, subscribers, options.rounds, options.storm)
        for kind in ("aiohttp", "sidecar")
    }
    for kind, found in results.items():
        told, rush = found["told_all_s"], found.get("storm")
        print(
            f"{kind:8} {found['subscribers']} subscribers: {found['bytes_each'] / 1024:.1f} KiB each,"
            f" {found['cpu_each_us']} µs of CPU to tell one,"
            f" all told after {told['median']:.3f} s (worst {told['worst']:.3f})"
        )
        if rush:
            print(
                f"{'':8} {rush['changes_per_s']} changes/s, {rush['subscribers']} subscribers:"
                f" {rush['missed_the_last']} miss the last, all have it {rush['all_have_it_after_s']} s after it,"
                f" {rush['messages_each']} messages each"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
