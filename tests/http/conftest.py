"""Applications under test: through a client of aiohttp, or served for real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from httpkit import Client, MakeClient, Serve, Served, start_serving


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
