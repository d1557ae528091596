"""Thousands of requests that wait for one change: all are woken by it, and nobody else has to wait for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from sidecar.http import handler_api
from sidecar.http.semantics.representation import Representation
from sidecar.http.subscribe import coalesced
from sidecar.http.subscribe.long_poll import respond, setup
from sidecar.http.subscribe.pending import PENDING, PendingRequests, Waiter
from sidecar.process import metrics
from support import after


class Source:
    """What is waited for; it changes when it is told to."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def change(self) -> None:
        for callback in list(self.callbacks):
            callback()


@pytest.fixture
def source() -> Any:
    return Source()


@pytest.fixture
async def waits() -> PendingRequests:
    app = web.Application()
    setup(app)
    return app[PENDING]


def request() -> Any:
    """As much of a request as is looked at, of a server that is not ours."""
    return SimpleNamespace(protocol=None, transport=object(), get=lambda _: None)


def waiting() -> float:
    value = metrics.REGISTRY.get_sample_value("sidecar_subscribers")
    assert value is not None
    return value


class Waiters:
    """So many requests, and the turn of the event loop in which each was woken."""

    def __init__(self, waits: PendingRequests, source: Any, count: int) -> None:
        self.waits = waits
        self.source = source
        self.turn = 0
        self.woken: list[int] = []
        self.last = [-1] * count
        self.tasks = [asyncio.create_task(self.one(number)) for number in range(count)]

    async def one(self, number: int) -> None:
        with self.waits.waiter(request(), self.source) as waiter:
            while not waiter.closed:
                await waiter.wait(60)
                self.woken.append(self.turn)
                self.last[number] = self.turn

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.woken) < count:
                await asyncio.sleep(0)
                self.turn += 1

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def test_those_who_wait_leave_others_their_turn(waits: PendingRequests, source: Any) -> None:
    """A few are woken at a time; a probe that comes in meanwhile is answered after the first of them."""
    waiters = Waiters(waits, source, 1000)
    await asyncio.sleep(0)
    assert waiting() == 1000
    source.change()
    await waiters.until(1000)
    assert max(Counter(waiters.woken).values()) <= 50
    await waiters.end()
    assert waiting() == 0
    assert source.callbacks == []


async def test_a_change_while_they_are_being_woken_wakes_all_of_them_again(
    waits: PendingRequests, source: Any
) -> None:
    """Whoever has been answered with the change before must not miss this one."""
    waiters = Waiters(waits, source, 200)
    await asyncio.sleep(0)
    source.change()
    await waiters.until(100)
    changed = waiters.turn
    source.change()
    await waiters.until(300)
    for _ in range(10):
        await asyncio.sleep(0)
    assert min(waiters.last) >= changed
    await waiters.end()


async def test_who_leaves_before_its_turn_is_not_waited_for(
    waits: PendingRequests, source: Any
) -> None:
    """Its client has gone away, and with the last of them the watch is let go."""
    waiters = Waiters(waits, source, 200)
    await asyncio.sleep(0)
    source.change()
    await waiters.end()
    for _ in range(10):
        await asyncio.sleep(0)
    assert waiters.woken == []
    assert source.callbacks == []


async def test_the_end_wakes_those_without_a_watch_too(waits: PendingRequests) -> None:
    """An application that shuts down answers whoever still waits."""
    waiters = Waiters(waits, None, 3)
    await asyncio.sleep(0)
    await waits.shut_down(web.Application())
    await asyncio.wait(waiters.tasks, timeout=5)
    assert len(waiters.woken) == 3


async def test_a_waiter_that_nobody_wakes_waits_no_longer_than_said(
    waits: PendingRequests, source: Any
) -> None:
    """And one that has been woken before does not wait at all."""
    with Waiter(waits, request(), source) as waiter:
        most_of_it = after(0.04)
        await waiter.wait(0.05)
        assert most_of_it.is_set()
        source.change()
        await waiter.wait(600)


async def test_who_has_looked_before_a_change_holds_nobody_back_after_it(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken later, as it stands far behind: others must not be told that what is there is not new."""
    app = web.Application()
    setup(app)
    opened: list[
        object
    ] = []  # for who waits in the same words, or for who is told of the new content
    monkeypatch.setattr(coalesced, "coalesce", lambda *given: opened.append(given[3:]))
    others = Waiters(app[PENDING], source, 60)
    await asyncio.sleep(0)
    state, read = "old", asyncio.get_running_loop().create_future()
    looks = 0

    async def make() -> Representation:
        nonlocal looks
        looks += 1
        found = state
        if looks == 2:
            await read  # a large content takes its time
        return Representation(found.encode(), f'"{found}"', 0.0, "text/plain")

    headers = {"If-None-Match": '"old"', "Prefer": "wait=30"}
    server = SimpleNamespace(ssl_context=None, peername=None, sockname=None, transport=object())
    asking = make_mocked_request("GET", "/", headers, app=app, protocol=server)
    one = asyncio.create_task(respond(asking, source, make, in_memory=lambda: True))
    while looks < 2:
        await asyncio.sleep(0)
    state = "new"
    read.set_result(None)
    handler_api.invalidate_all()
    source.change()
    async with asyncio.timeout(10):
        assert (await one).headers["ETag"] == '"new"'
    assert opened == [(('"new"', '"old"'),)]
    await others.end()
