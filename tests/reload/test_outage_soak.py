"""A receiver that is away for half a minute, in each way: down, hanging, and answering 500."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

import sidecar
from support import Eventually, FreePorts, Process, StartProcess

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

OUTAGE = 30.0
"""Seconds of each outage; in the last third nothing new is published."""
PAUSE = 0.1
"""Seconds between two versions: 200 of them come in one outage."""
TIMEOUT = 2.0
"""Seconds that the reloader waits for an answer."""
MOST_GROWTH = 2 << 20
"""Bytes of memory that may come on top during three outages."""

Mode = Literal["takes", "hangs", "fails"]


class Application:
    """Takes a request on each connection, and answers as its mode says."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mode: Mode = "takes"
        self.taken: list[str] = []
        self.failed = 0
        self.at_a_time = self.most_at_a_time = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_a_time += 1
        self.most_at_a_time = max(self.at_a_time, self.most_at_a_time)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if self.mode == "hangs":
                await reader.read()  # until the client gives up
                return
            if self.mode == "takes":
                self.taken.append(re.findall(r"(?i)^sidecar-version: (\w+)", head, re.MULTILINE)[0])
            else:
                self.failed += 1
            status = "204 No Content" if self.mode == "takes" else "500 Internal Server Error"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.at_a_time -= 1
            writer.close()


class Observed:
    """The reloader from outside: its metrics, its threads and its memory."""

    def __init__(self, process: Process, port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"

    def count(self, result: str) -> int:
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode()
        labels = rf'{{action="webhook",result="{result}"}}'
        return int(
            float(re.findall(rf"^sidecar_reload_total{labels} (\S+)$", text, re.MULTILINE)[0])
        )

    def status(self, field: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[0])

    def memory(self) -> int:
        return self.status("RssAnon") << 10


async def test_half_a_minute_without_a_receiver_in_each_way(
    tmp_path: Path, free_ports: FreePorts, sidecar_process: StartProcess, eventually: Eventually
) -> None:
    """Tried again, the latest wins, nothing piles up, the metrics are what the receiver has seen, and memory stays flat."""
    hook, probes = free_ports(2)
    application, volume = Application(hook), sidecar.Volume(tmp_path / "set", durability="none")
    await volume.publish({"a": "first"})
    url = f"http://127.0.0.1:{hook}/reload"
    process = sidecar_process(
        *("reload", "--path", f"{volume.path}/", "--webhook", url, "--timeout", TIMEOUT),
        *("--port", probes, "--log-level", "error"),
        until=f"http://127.0.0.1:{probes}/livez",
    )
    seen, number = Observed(process, probes), 0

    async def publish_for(seconds: float) -> str:
        nonlocal number
        end, version = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            number += 1
            version = (await volume.publish({"a": str(number)})).version
            await asyncio.sleep(PAUSE)
        return version

    async def outage(mode: Mode | None) -> str:
        """Return the last version of an outage."""
        application.mode = mode or "takes"
        version = await publish_for(OUTAGE * 2 / 3)
        await asyncio.sleep(OUTAGE / 3)
        return version

    async def recover(version: str) -> float:
        """Have the receiver take again what it gets; return the seconds until it has the version, and nothing before it."""
        begun, known = time.monotonic(), len(application.taken)
        application.mode = "takes"
        await eventually(lambda: version in application.taken, timeout=40)
        assert application.taken[known:] == [version]
        return time.monotonic() - begun

    async with application.listening():
        await eventually(lambda: application.taken, timeout=30)
        newest = await publish_for(OUTAGE / 6)
        await eventually(lambda: newest in application.taken, timeout=30)
        application.mode = "takes"
    memory = await asyncio.to_thread(seen.memory)

    outages: list[tuple[str, Mode | None]] = [
        ("down", None),
        ("hanging", "hangs"),
        ("answering 500", "fails"),
    ]
    for way, mode in outages:
        failed, ok = [await asyncio.to_thread(seen.count, one) for one in ("failed", "ok")]
        refused, threads = application.failed, 0
        async with asyncio.TaskGroup() as group:

            async def look() -> None:
                nonlocal threads
                for _ in range(int(OUTAGE)):
                    threads = max(threads, await asyncio.to_thread(seen.status, "Threads"))
                    await asyncio.sleep(1.0)

            watching = group.create_task(look())
            if mode is None:
                newest = await outage(None)
            else:
                async with application.listening():
                    newest = await outage(mode)
            watching.cancel()
        async with application.listening():
            took = await recover(newest)
        attempts = await asyncio.to_thread(seen.count, "failed") - failed
        assert await asyncio.to_thread(seen.count, "ok") == ok + 1
        assert attempts > 1
        if mode == "fails":
            assert attempts == application.failed - refused
        ready = await asyncio.to_thread(urllib.request.urlopen, f"{seen.url}/readyz", None, 10)
        assert ready.status == 200
        grown = await asyncio.to_thread(seen.memory) - memory
        print(
            f"{way} for {OUTAGE:g} s: {attempts} failed attempts for {int(OUTAGE * 2 / 3 / PAUSE)} versions,"
            f" the last one applied {took:.1f} s after it, {application.most_at_a_time} request at a time,"
            f" {threads} threads at most, {grown / (1 << 20):+.1f} MiB"
        )
        assert application.most_at_a_time == 1
        assert grown < MOST_GROWTH
