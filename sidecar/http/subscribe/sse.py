r"""Tell everybody who listens what the content is now: server-sent events.

https://html.spec.whatwg.org/multipage/server-sent-events.html

    event: content    the content, as `GET /` has it (`null` where it is no text), under its entity tag as `id`
    event: stale      it may be out of date: {"reason": "…"}
    event: fresh      it is not any more: {"etag": "…"}

A browser that comes back says in `Last-Event-ID` what it has, and is sent nothing twice.
What happened in between is not told: only the newest content counts.

One message is prepared for each change, and written to every connection as it is.
Who does not take it in time is left alone until it has, and then gets the newest: nobody is queued for.
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
"""Seconds between two comments that keep proxies from closing a silent connection; the specification's advice."""
_PATIENCE: Final = 60.0
"""Seconds after which a client that takes nothing any more is held to be gone."""
_RETRY: Final = (1000, 3000)
"""Milliseconds, one at random for each client: those of a Pod that ends must not all come back at once."""
_SLICE: Final = 200
"""Clients that are written to before other requests get their turn: a millisecond or two."""
_COMMENT: Final = b":\n\n"

HEADERS: Final[Mapping[str, str]] = {
    "Server": "sidecar",  # as everywhere; it is sent before the connection could set it
    "Content-Type": "text/event-stream",  # which is always UTF-8
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx as a proxy would wait for 4 KiB
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What is told of."""

    @property
    def stale(self) -> str | None:
        """Why the content may be out of date."""

    async def image(self) -> tuple[str, bytes] | None:
        """Return the entity tag and the JSON of the content, None while there is none."""

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back at each change of either; return what ends that."""


class _Now(NamedTuple):
    """What everybody is to know."""

    etag: str | None
    stale: str | None
    image: bytes


class Subscriber:
    """One connection, and what it knows."""

    __slots__ = (
        "admission",
        "chunked",
        "connection",
        "end_callback",
        "etag",
        "revoked",
        "silent",
        "stale",
        "stream",
        "transport",
        "wake",
    )

    def __init__(self, stream: EventHub, request: web.Request, etag: str | None) -> None:
        self.stream = stream
        self.connection = request.protocol
        self.transport: asyncio.Transport | None = None
        self.chunked = request.version >= HttpVersion11
        self.etag = etag
        self.stale: str | None = None
        self.silent = 0
        """The number of heartbeats since it last took something."""
        self.wake: asyncio.Future[None] | None = None
        """Calls the handler, where that had to stay."""
        self.admission = request.get(ADMISSION)
        self.revoked = False
        self.end_callback: Callable[[], None] | None = None

    def resumed(self) -> None:
        self.stream.tell(self)

    def lost(self) -> None:
        self.stream.remove(self)

    def call(self) -> None:
        """Let the handler look, if there is one."""
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def end(self) -> None:
        """End the answer, and with it the connection."""
        if self.wake is not None or self.transport is None:
            self.call()
            return
        if self.chunked:
            self.transport.write(b"0\r\n\r\n")
        self.transport.close()

    def revoke(self) -> None:
        """End the answer at once, whose token is in force no more; what the client has not taken is dropped."""
        self.revoked = True
        self.end()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.transport.abort()


class _Answer(web.StreamResponse):
    """An answer that does not end when its handler does."""

    subscriber: Subscriber | None = None

    async def write_eof(self, data: bytes = b"") -> None:
        if self.subscriber is None:
            await super().write_eof(data)
        else:
            self.subscriber.stream.take(self.subscriber)


class EventHub:
    """All subscribers of one source, and the task that writes to them while there are any."""

    def __init__(self, source: Source, waits: PendingRequests) -> None:
        self._source = source
        self._waits = waits
        self._subscribers: dict[Subscriber, None] = {}
        self._changed = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._now = _Now(None, None, b"null")
        self._wires: dict[tuple[bool, bool, bool], bytes] = {}
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Stream subscribers={len(self._subscribers)} etag={self._now.etag}>"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer with events until the client has gone, or the process drains."""
        response = _Answer(headers=HEADERS)
        response.force_close()  # whatever ends the stream ends the connection
        if request.method == "HEAD":
            return response
        await response.prepare(request)
        subscriber = Subscriber(self, request, _known(request))
        await self._refresh()
        await response.write(b"retry: %d\n\n" % random.randint(*_RETRY) + self._text(subscriber))  # noqa: S311 (no secret)
        # A browser gives up at any other status than 200:
        # from a process that drains it gets the content, and comes back to another one.
        if not lifecycle.draining():
            if isinstance(request.protocol, ServerProtocol):
                response.subscriber = subscriber
            else:
                await self._stay(subscriber, request)
        return response

    def ring(self) -> None:
        """Let everybody go, for that is why it rings: the process drains, or the application shuts down."""
        self._over = True
        for subscriber in list(self._subscribers):
            subscriber.end()

    def take(self, subscriber: Subscriber) -> None:
        """Take the connection from aiohttp: whatever happens to it now comes here."""
        if isinstance(subscriber.connection, ServerProtocol):
            subscriber.transport = subscriber.connection.take(subscriber)
            if subscriber.transport is not None:
                self._add(subscriber)

    async def _stay(self, subscriber: Subscriber, request: web.Request) -> None:
        """Do the same where another server runs the application, with a handler that stays."""
        loop = asyncio.get_running_loop()
        subscriber.transport = request.transport
        if subscriber.transport is None:
            return
        wake = subscriber.wake = loop.create_future()
        self._add(subscriber)
        try:
            while not (self._over or subscriber.revoked) and request.transport is not None:
                await wake
                wake = subscriber.wake = loop.create_future()
                await request.writer.drain()
                self.tell(subscriber)
        except ConnectionError:
            return
        finally:
            self.remove(subscriber)

    def _add(self, subscriber: Subscriber) -> None:
        if not self._subscribers:
            self._over = False
            self._unsubscribe = self._source.subscribe(self._changed.set)
            self._task = asyncio.create_task(self._run(), name="events")
            self._task.add_done_callback(self._ended)
            self._waits.add(self)
        if not self._knows(subscriber):
            self._changed.set()  # something has happened since it was written to
        if subscriber.transport is not None:
            # As soon as something cannot be sent, the connection says so. (With 0, TLS would say so of nothing.)
            subscriber.transport.set_write_buffer_limits(high=1, low=0)
        self._subscribers[subscriber] = None
        if subscriber.admission is not None:
            subscriber.end_callback = subscriber.admission.on_revoked(subscriber.revoke)
        metrics.SUBSCRIBERS.inc()

    def remove(self, subscriber: Subscriber) -> None:
        """Write to it no more."""
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
            self._waits.discard(self)

    async def _run(self) -> None:
        """Tell each change, and now and then that nothing has changed."""
        loop = asyncio.get_running_loop()
        heartbeat = loop.time() + HEARTBEAT
        while True:
            begun = loop.time()
            self._changed.clear()
            await self._refresh()
            await self._broadcast(self.tell)
            if loop.time() >= heartbeat:
                heartbeat = loop.time() + HEARTBEAT
                await self._broadcast(self._heartbeat)
            # Many subscribers and many changes: half of the time is for other requests.
            await asyncio.sleep(loop.time() - begun)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(heartbeat):
                    await self._changed.wait()

    async def _broadcast(self, say: Callable[[Subscriber], None]) -> None:
        for number, subscriber in enumerate(list(self._subscribers), 1):
            say(subscriber)
            if number % _SLICE == 0:
                await asyncio.sleep(0)

    async def _refresh(self) -> None:
        async with self._refreshing:  # of two, the one that began later has the newer content
            # First: `fresh` is never told with the tag of a content that was stale.
            stale = self._source.stale
            etag, image = await self._source.image() or (None, b"null")
            now = _Now(etag, stale, image)
            if now != self._now:
                self._now = now
                self._wires.clear()

    def _knows(self, subscriber: Subscriber) -> bool:
        return subscriber.etag == self._now.etag and subscriber.stale == self._now.stale

    def tell(self, subscriber: Subscriber) -> None:
        """Write what the subscriber does not know yet, if it can take anything now."""
        if self._knows(subscriber) or not self._can_take(subscriber):
            return
        now = self._now
        key = (subscriber.etag != now.etag, subscriber.stale != now.stale, subscriber.chunked)
        wire = self._wires.get(key)
        if wire is None:
            text = self._text(subscriber)
            wire = self._wires[key] = _chunk(text) if subscriber.chunked else text
        subscriber.etag, subscriber.stale, subscriber.silent = now.etag, now.stale, 0
        if subscriber.transport is not None:
            subscriber.transport.write(wire)

    def _heartbeat(self, subscriber: Subscriber) -> None:
        """Write a comment; let go of who has taken nothing for long."""
        if subscriber.transport is None:
            return
        if self._can_take(subscriber):
            subscriber.silent = 0
            subscriber.transport.write(_chunk(_COMMENT) if subscriber.chunked else _COMMENT)
        elif subscriber.silent * HEARTBEAT >= _PATIENCE:
            subscriber.transport.abort()
        else:
            subscriber.silent += 1

    def _can_take(self, subscriber: Subscriber) -> bool:
        """Whether all that was written is sent. If not, `tell` is called again as soon as it is."""
        gone = subscriber.transport is None or subscriber.transport.is_closing()
        if gone or subscriber.connection.writing_paused:
            subscriber.call()
            return False
        return True

    def _text(self, subscriber: Subscriber) -> bytes:
        """Return the events that the subscriber does not know yet, and note that it does."""
        now = self._now
        text = b""
        if now.etag is not None and subscriber.etag != now.etag:
            text += b"id: %b\nevent: content\ndata: %b\n\n" % (now.etag.encode(), now.image)
        if subscriber.stale != now.stale:
            name, data = (
                (b"fresh", {"etag": now.etag})
                if now.stale is None
                else (b"stale", {"reason": representation.header_text(now.stale)})
            )
            text += b"event: %b\ndata: %b\n\n" % (name, orjson.dumps(data))
        subscriber.etag, subscriber.stale = now.etag, now.stale
        return text

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        _log.error("events cannot be sent any more: clients are let go", exc_info=task.exception())
        self.ring()


def _known(request: web.Request) -> str | None:
    """Return the entity tag that a client says it has, with its quotes, however it has kept them."""
    tag = request.headers.get("Last-Event-ID", "").strip().removeprefix("W/").strip('"')
    return f'"{tag}"' if tag else None


def _chunk(data: bytes) -> bytes:
    """Return data as one chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
