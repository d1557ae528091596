r"""Server-sent events: each new content is sent to all subscribers.

https://html.spec.whatwg.org/multipage/server-sent-events.html

    event: content    the content, as `GET /` returns it (`null` if it is not text), with its entity tag as `id`
    event: stale      the content may be out of date: {"reason": "…"}
    event: fresh      it is up to date again: {"etag": "…"}

A browser that reconnects sends `Last-Event-ID`, and gets no content twice.
Contents that were replaced meanwhile are not sent: only the newest one counts.

Each message is built once per change, and written to every connection as it is.
A slow client is skipped until it has read its data, and then gets the newest state: nothing is queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import orjson
from aiohttp import web
from aiohttp.http import HttpVersion11

from sidecar.http.semantics import representation
from sidecar.http.semantics.bearer_auth import ADMISSION
from sidecar.http.server.protocol import ServerProtocol
from sidecar.http.subscribe.pending import PendingRequests
from sidecar.process import lifecycle, metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

HEARTBEAT: Final = 15.0
"""Seconds between two comments that keep proxies from closing a silent connection, as the specification advises."""
_STALL_TIMEOUT: Final = 60.0
"""Seconds without progress after which a client is considered gone."""
_RETRY_MILLISECONDS: Final = (1000, 3000)
"""Range of the reconnection time: random, so that the clients of a Pod that ends do not all reconnect at once."""
_WRITE_BATCH: Final = 200
"""Clients that are written to per iteration of the event loop: a millisecond or two."""
_COMMENT: Final = b":\n\n"

HEADERS: Final[Mapping[str, str]] = {
    "Server": "sidecar",  # as everywhere; these headers are sent before the connection could set it
    "Content-Type": "text/event-stream",  # which is always UTF-8
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers 4 KiB
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


class SnapshotSource(Protocol):
    """The content that subscribers receive."""

    @property
    def stale(self) -> str | None:
        """Why the content may be out of date, None if it is not."""

    async def snapshot_json(self) -> tuple[str, bytes] | None:
        """Return the entity tag and the JSON of the content, None if there is none."""

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at each change of either; return a function that ends it."""


class _EventState(NamedTuple):
    """The state that every subscriber should have."""

    etag: str | None
    stale: str | None
    snapshot_json: bytes


class Subscriber:
    """One connection, and the state it has received."""

    __slots__ = (
        "admission",
        "chunked",
        "connection",
        "end_callback",
        "etag",
        "hub",
        "missed_heartbeats",
        "revoked",
        "stale",
        "transport",
        "wake",
    )

    def __init__(self, hub: EventHub, request: web.Request, etag: str | None) -> None:
        self.hub = hub
        self.connection = request.protocol
        self.transport: asyncio.Transport | None = None
        self.chunked = request.version >= HttpVersion11
        self.etag = etag
        self.stale: str | None = None
        self.missed_heartbeats = 0
        """Heartbeats since the client last read its data."""
        self.wake: asyncio.Future[None] | None = None
        """Wakes the handler, for a server other than ours."""
        self.admission = request.get(ADMISSION)
        self.revoked = False
        self.end_callback: Callable[[], None] | None = None

    def writable(self) -> None:
        self.hub.send_updates(self)

    def disconnected(self) -> None:
        self.hub.remove(self)

    def wake_handler(self) -> None:
        """Wake the handler, if there is one."""
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def close(self) -> None:
        """End the response and close the connection."""
        if self.wake is not None or self.transport is None:
            self.wake_handler()
            return
        if self.chunked:
            self.transport.write(b"0\r\n\r\n")
        self.transport.close()

    def revoke(self) -> None:
        """End the response at once because its token was revoked; unsent data is dropped."""
        self.revoked = True
        self.close()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.transport.abort()


class _EventStreamResponse(web.StreamResponse):
    """A response that continues after its handler has returned."""

    subscriber: Subscriber | None = None

    async def write_eof(self, data: bytes = b"") -> None:
        if self.subscriber is None:
            await super().write_eof(data)
        else:
            self.subscriber.hub.adopt(self.subscriber)


class EventHub:
    """All subscribers of one source; a task writes to them while there are any."""

    def __init__(self, source: SnapshotSource, pending: PendingRequests) -> None:
        self._source = source
        self._pending = pending
        self._subscribers: dict[Subscriber, None] = {}
        self._changed = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._state = _EventState(None, None, b"null")
        self._messages: dict[tuple[bool, bool, bool], bytes] = {}
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<EventHub subscribers={len(self._subscribers)} etag={self._state.etag}>"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Send events until the client disconnects or the process drains."""
        response = _EventStreamResponse(headers=HEADERS)
        response.force_close()  # the end of the stream closes the connection
        if request.method == "HEAD":
            return response
        await response.prepare(request)
        subscriber = Subscriber(self, request, _known(request))
        await self._refresh()
        retry = random.randint(*_RETRY_MILLISECONDS)  # noqa: S311 (no secret)
        await response.write(b"retry: %d\n\n" % retry + self._text(subscriber))
        # A browser gives up at any status but 200:
        # while the process drains it gets the content, and reconnects to another Pod.
        if not lifecycle.draining():
            if isinstance(request.protocol, ServerProtocol):
                response.subscriber = subscriber
            else:
                await self._serve_in_handler(subscriber, request)
        return response

    def wake(self) -> None:
        """Disconnect all subscribers: the process drains, or the application shuts down."""
        self._closed = True
        for subscriber in list(self._subscribers):
            subscriber.close()

    def adopt(self, subscriber: Subscriber) -> None:
        """Detach the connection from aiohttp; its events are handled here from now on."""
        if isinstance(subscriber.connection, ServerProtocol):
            subscriber.transport = subscriber.connection.detach(subscriber)
            if subscriber.transport is not None:
                self._add(subscriber)

    async def _serve_in_handler(self, subscriber: Subscriber, request: web.Request) -> None:
        """Serve the stream from the handler, under another server than ours."""
        loop = asyncio.get_running_loop()
        subscriber.transport = request.transport
        if subscriber.transport is None:
            return
        wake = subscriber.wake = loop.create_future()
        self._add(subscriber)
        try:
            while not (self._closed or subscriber.revoked) and request.transport is not None:
                await wake
                wake = subscriber.wake = loop.create_future()
                await request.writer.drain()
                self.send_updates(subscriber)
        except ConnectionError:
            return
        finally:
            self.remove(subscriber)

    def _add(self, subscriber: Subscriber) -> None:
        if not self._subscribers:
            self._closed = False
            self._unsubscribe = self._source.subscribe(self._changed.set)
            self._task = asyncio.create_task(self._run(), name="events")
            self._task.add_done_callback(self._on_task_done)
            self._pending.add(self)
        if not self._is_current(subscriber):
            self._changed.set()  # the content has changed since the first message
        if subscriber.transport is not None:
            # Report every partial write as backpressure. (With high=0, TLS transports never would.)
            subscriber.transport.set_write_buffer_limits(high=1, low=0)
        self._subscribers[subscriber] = None
        if subscriber.admission is not None:
            subscriber.end_callback = subscriber.admission.on_revoked(subscriber.revoke)
        metrics.SUBSCRIBERS.inc()

    def remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber."""
        if subscriber not in self._subscribers:
            return
        del self._subscribers[subscriber]
        if subscriber.end_callback is not None:
            subscriber.end_callback()
        metrics.SUBSCRIBERS.dec()
        if not self._subscribers:
            self._unsubscribe()
            if self._task is not None:
                self._task.cancel()
            self._pending.discard(self)

    async def _run(self) -> None:
        """Send each change, and heartbeats in between."""
        loop = asyncio.get_running_loop()
        heartbeat = loop.time() + HEARTBEAT
        while True:
            started = loop.time()
            self._changed.clear()
            await self._refresh()
            await self._broadcast(self.send_updates)
            if loop.time() >= heartbeat:
                heartbeat = loop.time() + HEARTBEAT
                await self._broadcast(self._heartbeat)
            # With many subscribers and many changes, half of the time is left to other requests.
            await asyncio.sleep(loop.time() - started)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(heartbeat):
                    await self._changed.wait()

    async def _broadcast(self, send: Callable[[Subscriber], None]) -> None:
        for number, subscriber in enumerate(list(self._subscribers), 1):
            send(subscriber)
            if number % _WRITE_BATCH == 0:
                await asyncio.sleep(0)

    async def _refresh(self) -> None:
        async with self._refreshing:  # the later of two calls must store the newer content
            # Read `stale` first: `fresh` must never carry the tag of a stale content.
            stale = self._source.stale
            etag, snapshot_json = await self._source.snapshot_json() or (None, b"null")
            state = _EventState(etag, stale, snapshot_json)
            if state != self._state:
                self._state = state
                self._messages.clear()

    def _is_current(self, subscriber: Subscriber) -> bool:
        return subscriber.etag == self._state.etag and subscriber.stale == self._state.stale

    def send_updates(self, subscriber: Subscriber) -> None:
        """Write the events that the subscriber has not received, if it is writable."""
        if self._is_current(subscriber) or not self._is_writable(subscriber):
            return
        state = self._state
        key = (subscriber.etag != state.etag, subscriber.stale != state.stale, subscriber.chunked)
        message = self._messages.get(key)
        if message is None:
            text = self._text(subscriber)
            message = self._messages[key] = _chunk(text) if subscriber.chunked else text
        subscriber.etag, subscriber.stale, subscriber.missed_heartbeats = state.etag, state.stale, 0
        if subscriber.transport is not None:
            subscriber.transport.write(message)

    def _heartbeat(self, subscriber: Subscriber) -> None:
        """Write a comment; abort a connection that has been stalled for `_STALL_TIMEOUT`."""
        if subscriber.transport is None:
            return
        if self._is_writable(subscriber):
            subscriber.missed_heartbeats = 0
            subscriber.transport.write(_chunk(_COMMENT) if subscriber.chunked else _COMMENT)
        elif subscriber.missed_heartbeats * HEARTBEAT >= _STALL_TIMEOUT:
            subscriber.transport.abort()
        else:
            subscriber.missed_heartbeats += 1

    def _is_writable(self, subscriber: Subscriber) -> bool:
        """Whether all data has been sent. If not, `send_updates` is called again as soon as it has been."""
        gone = subscriber.transport is None or subscriber.transport.is_closing()
        if gone or subscriber.connection.writing_paused:
            subscriber.wake_handler()
            return False
        return True

    def _text(self, subscriber: Subscriber) -> bytes:
        """Return the events that the subscriber has not received, and update its state."""
        state = self._state
        text = b""
        if state.etag is not None and subscriber.etag != state.etag:
            text += b"id: %b\nevent: content\ndata: %b\n\n" % (
                state.etag.encode(),
                state.snapshot_json,
            )
        if subscriber.stale != state.stale:
            name, data = (
                (b"fresh", {"etag": state.etag})
                if state.stale is None
                else (b"stale", {"reason": representation.header_text(state.stale)})
            )
            text += b"event: %b\ndata: %b\n\n" % (name, orjson.dumps(data))
        subscriber.etag, subscriber.stale = state.etag, state.stale
        return text

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        _log.error(
            "cannot send events: disconnecting all subscribers",
            exc_info=task.exception(),
            extra={"event": "http.events_failed"},
        )
        self.wake()


def _known(request: web.Request) -> str | None:
    """Return the entity tag of `Last-Event-ID` with quotes, whether the client kept them or not."""
    tag = request.headers.get("Last-Event-ID", "").strip().removeprefix("W/").strip('"')
    return f'"{tag}"' if tag else None


def _chunk(data: bytes) -> bytes:
    """Return data as one chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
