"""The events of a writer's page: `/ui/events`. A writer watches its path only while somebody has the page open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from sidecar.http.subscribe import pending
from sidecar.http.subscribe.sse import EventHub
from sidecar.volume.validation.signatures import KeyFiles
from sidecar.volume.watch import watch as watches

LINGER_SECONDS: Final = 30.0
"""Seconds without a subscriber after which the watch ends: a page that reconnects finds it."""


class LiveEvents:
    """Server-sent events about a path, as those of the reader, but without the content.

    The watch begins with the first subscriber, and ends `LINGER_SECONDS` after the last one.
    """

    def __init__(self, path: str, max_size: int, verify_key: KeyFiles = ()) -> None:
        self._path = path
        self._max_size = max_size
        self._verify_key = verify_key
        self._lock = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()
        self._hub: EventHub | None = None
        self._subscribed = False
        self._closing: asyncio.Task[None] | None = None

    def routes(self) -> list[web.RouteDef]:
        """Return the route of the events."""
        return [web.get("/ui/events", self._answer)]

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """End the watch with the application: for `cleanup_ctx`."""
        yield
        self._keep()
        async with self._lock:
            await self._close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        async with self._lock:
            if self._hub is None:
                watch = await self._stack.enter_async_context(
                    watches.shared(self._path, max_size=self._max_size, verify_key=self._verify_key)
                )
                await watch.looked()
                self._hub = EventHub(_Source(self, watch), request.app[pending.PENDING])
            hub = self._hub
            if not self._subscribed:
                self.close_later()  # also if this client leaves before it is a subscriber
        return await hub.answer(request)

    def subscribed(self) -> None:
        """Keep the watch: there is a subscriber."""
        self._subscribed = True
        self._keep()

    def close_later(self) -> None:
        """End the watch unless somebody subscribes in time."""
        self._subscribed = False
        self._keep()
        self._closing = asyncio.create_task(self._linger(), name="events of the page: the end")

    def _keep(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    async def _linger(self) -> None:
        await asyncio.sleep(LINGER_SECONDS)
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        self._hub = None
        await self._stack.aclose()


class _Source:
    """A watch as a source of events that say which version there is, and not what it holds."""

    def __init__(self, live: LiveEvents, watch: watches.Watch[None]) -> None:
        self._live = live
        self._watch = watch

    @property
    def stale(self) -> str | None:
        return self._watch.stale

    async def snapshot_json(self) -> tuple[str, bytes] | None:
        etag = self._watch.etag
        return None if etag is None else (etag, b"null")

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._live.subscribed()
        end = self._watch.subscribe(callback)

        def unsubscribe() -> None:
            end()
            self._live.close_later()

        return unsubscribe
