"""Applications under test: through a client of aiohttp, or served for real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from support.httpkit import Client, MakeClient, Play, Serve, Served, start_serving


@pytest_asyncio.fixture
async def client() -> AsyncIterator[MakeClient]:
    """`await client(app)`: a client of an application that runs until the test ends."""
    async with AsyncExitStack() as stack:

        async def make(app: web.Application) -> Client:
            one: Client = TestClient(TestServer(app))
            stack.push_async_callback(one.close)
            await one.start_server()
            return one

        yield make


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Serve]:
    """`await served(app, **options)`: the application as `serve` runs it, until the test ends."""
    running: list[Served] = []

    async def start(app: web.Application, **options: Any) -> Served:
        running.append(await start_serving(app, **options))
        return running[-1]

    yield start
    for one in running:
        await one.stop()


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    """`play(app, scene)`: serve the application while the scene is played, in an event loop of either kind."""
    loop_factory: Any = None
    if request.param == "uvloop":
        loop_factory = pytest.importorskip("uvloop").new_event_loop

    def run(app: web.Application, scene: Callable[[Served], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            served = await start_serving(app)
            try:
                async with asyncio.timeout(20):
                    await scene(served)
            finally:
                await served.stop()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(all_of_it())

    return run
