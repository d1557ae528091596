"""An application that takes webhooks, and a reloader beside it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import sidecar
from sidecar.process import metrics


class Receiver:
    """A real HTTP server that notes what it is asked, and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        """Version and changed names of each POST."""
        self.statuses: deque[int] = deque()
        """Of the next answers; 200 after them."""
        self.status_of: dict[str, int] = {}
        """Of all answers to a version."""
        self.held = asyncio.Event()
        self.held.set()
        self.closes = False
        """Whether connections are closed without an answer."""
        self.retry_after = ""
        self.at_a_time = self.most_at_a_time = 0
        self.active = ""
        """What GET reports."""
        self.server = TestServer(self._app())

    def _app(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.post("/reload", self._reload), web.get("/active", self._active)])
        return app

    async def _reload(self, request: web.Request) -> web.Response:
        headers = request.headers
        assert headers["ETag"] == f'"{headers["Sidecar-Version"]}"'
        assert await request.read() == b""
        self.requests.append((headers["Sidecar-Version"], headers["Sidecar-Changed"]))
        self.at_a_time += 1
        self.most_at_a_time = max(self.at_a_time, self.most_at_a_time)
        try:
            await self.held.wait()
            if self.closes and request.transport is not None:
                request.transport.abort()
        finally:
            self.at_a_time -= 1
        status = self.status_of.get(self.requests[-1][0], 200)
        if self.statuses:
            status = self.statuses.popleft()
        pause = {"Retry-After": self.retry_after} if self.retry_after else {}
        text = "line 3: bad" if status >= 400 else ""
        return web.Response(status=status, text=text, headers=pause)

    async def _active(self, request: web.Request) -> web.Response:
        return web.Response(text=f"running {self.active}")

    @property
    def versions(self) -> list[str]:
        return [version for version, _ in self.requests]

    @property
    def url(self) -> str:
        return str(self.server.make_url("/reload"))

    @property
    def active_url(self) -> str:
        return str(self.server.make_url("/active"))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """The application, listening."""
    made = Receiver()
    await made.server.start_server()
    yield made
    made.held.set()
    await made.server.close()


@pytest.fixture
def volume(tmp_path: Path) -> sidecar.Volume:
    """A directory for a set."""
    return sidecar.Volume(tmp_path / "set")


@pytest.fixture
async def background() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]]:
    """`background(coroutine)`: run it until the test ends."""
    tasks: list[asyncio.Task[None]] = []

    def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def count() -> Callable[[str, str], float]:
    """`count("webhook", "ok")`: what `sidecar_reload_total` has grown by since the test began; -1 without the series."""

    def now(action: str, result: str) -> float | None:
        labels = {"action": action, "result": result}
        return metrics.REGISTRY.get_sample_value("sidecar_reload_total", labels)

    kinds = ("webhook", "command", "signal", "confirm", "rollback", "expand", "hold")
    before = {
        (kind, result): now(kind, result) or 0 for kind in kinds for result in ("ok", "failed")
    }

    def grown(action: str, result: str) -> float:
        value = now(action, result)
        return -1 if value is None else value - before[action, result]

    return grown
