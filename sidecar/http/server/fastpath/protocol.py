"""The connection protocol with the fast path: it looks a request up in the cache and passes the others to aiohttp.

A cached response is written without a task, a request object or a handler.
A write or a long poll of the fast path is a request in flight that aiohttp does not know of:
further input is buffered until it has finished, and then the state is as aiohttp has left it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sidecar import _errors
from sidecar.http import problems
from sidecar.http.server import fastpath, memfd
from sidecar.http.server.protocol import HEAD_END, ConnectionOwner, ServerProtocol
from sidecar.process import lifecycle, metrics, request_context

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from sidecar.http.handler_api import MakeWaitlist, Waitlist, WriteFunction
    from sidecar.http.server.fastpath import ListenerCache
    from sidecar.http.server.fastpath.response_cache import HotResponse
    from sidecar.http.server.fastpath.write_templates import WriteTemplate
    from sidecar.http.server.limits import ConnectionLimiter
    from sidecar.http.server.memfd import MemFd
    from sidecar.volume.publish.group_commit import Outcome

_MAX_BUFFERED_BYTES = 64 << 10
_MAX_BUFFERED_CHUNKS = 64
"""Limits of the input that is buffered while a request is in flight; then the transport stops reading.
Chunks are counted as well: a small one takes more memory than its bytes.
"""


@dataclass(eq=False, slots=True)
class _InFlight:
    """A request of the fast path without a response yet, and the input received after it.

    A write has the template of its response; a long poll has none.
    """

    request: bytes
    cancel: Callable[[], None]
    started: float
    """Event loop clock."""
    template: WriteTemplate | None = None
    buffered: deque[bytes] | None = None

    @property
    def buffer_full(self) -> bool:
        """Whether the buffer limits are exceeded."""
        chunks = self.buffered or ()
        return sum(map(len, chunks)) > _MAX_BUFFERED_BYTES or len(chunks) > _MAX_BUFFERED_CHUNKS


_NO_RESPONSES: dict[bytes, HotResponse] = {}
"""The response table of a connection that must not answer from the cache. Always empty."""


class FastPathProtocol(ServerProtocol):
    """The protocol of one connection of a listener, with the listener's `cache`."""

    __slots__ = (
        "_fd",
        "_hot",
        "_in_flight",
        "_listener_cache",
        "_peer",
        "_raw_request",
        "_ready_for_request",
        "_served_until",
        "cache_hint",
        "poll_deadline",
        "prior_result",
        "was_long_poll",
    )

    def __init__(
        self,
        server: web.Server,
        limiter: ConnectionLimiter,
        cache: ListenerCache,
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        max_line_size: int,
    ) -> None:
        super().__init__(
            server,
            limiter,
            loop=loop,
            keepalive_timeout=keepalive_timeout,
            max_line_size=max_line_size,
        )
        self._listener_cache = cache
        self._peer: str | None = None
        self.cache_hint: int | WriteFunction | None = None
        """What the handler allows to cache: the epoch of its response, or the function that writes another value."""
        self.prior_result: Outcome | None = None
        """The result of the request that was passed to aiohttp, if the fast path has executed it."""
        self.was_long_poll = False
        """Whether the cacheable response is only for long polls that have waited."""
        self.poll_deadline: float | None = None
        """The deadline of a long poll that has waited on a waitlist before (event loop clock)."""
        self._in_flight: _InFlight | None = None
        self._hot = _NO_RESPONSES
        """The responses that can be written at once: those of this second if the connection is idle, else an empty dict.
        A cached response thus costs one dict lookup.
        """
        self._served_until = 0.0
        """End of the second in which a cached response was sent last."""
        self._fd: int | None = None
        """File descriptor of the socket, once it was needed."""
        self._ready_for_request = True
        """The parser is between two requests, and all requests have been answered."""
        self._raw_request: bytes | None = None
        """The bytes of the request that aiohttp handles, if they arrived alone and complete."""

    @property
    def awaiting_first_request(self) -> bool:
        return super().awaiting_first_request and not self._served_until

    @property
    def idle_since(self) -> float | None:
        since = super().idle_since
        return None if since is None else max(since, self._served_until - 1.0)

    @property
    def _waits_long(self) -> bool:
        waits = self._in_flight is not None and self._in_flight.template is None
        return waits or super()._waits_long

    @property
    def _has_unanswered(self) -> bool:
        return self._in_flight is not None or super()._has_unanswered

    def data_received(self, data: bytes) -> None:
        """Answer from the cache if possible, else pass the data to aiohttp."""
        # A lookup in an empty dict would still hash the data: a whole chunk of an upload.
        found = self._hot.get(data) if self._hot else None
        if found is None:
            self._dispatch(data)
            return
        serialized, counter, self._served_until = found
        counter.value += 1
        if serialized.__class__ is bytes:
            self.transport.write(serialized)  # type: ignore[union-attr]  # data comes over a transport
        else:
            self._send(serialized)  # type: ignore[arg-type]  # a large response

    def _dispatch(self, data: bytes) -> None:
        """Process input that is not in the response table of this connection."""
        if self._in_flight is not None:
            self._buffer_input(self._in_flight, data)
            return
        if (
            self._ready_for_request
            and not self.drops_input
            and not self.writing_paused  # aiohttp waits for a client that does not take its answers
        ):
            self._hot = self._listener_cache.hot
            if (serialized := self._listener_cache.find(data)) is not None:
                self._respond(serialized)
                return
            if self._start_write(data) or self._join_waitlist(data):
                return
        self._fall_back(data)

    def _respond(self, serialized: bytes | MemFd) -> None:
        if isinstance(serialized, bytes):
            self.transport.write(serialized)  # type: ignore[union-attr]  # checked by the callers
        else:
            self._send(serialized)
        self.keep_alive_from(self.loop.time())

    def _send(self, serialized: MemFd) -> None:
        transport: Any = self.transport
        if self._fd is None:
            self._fd = memfd.raw_fd(transport)
        serialized.send(transport, self._fd)

    def _fall_back(self, data: bytes) -> None:
        was_ready, self._ready_for_request = self._ready_for_request, False
        self._hot = _NO_RESPONSES
        self._raw_request = None
        super().data_received(data)
        if (
            was_ready
            and self._parser_at_boundary
            and len(self.queued) == 1
            and data.count(HEAD_END) == 1
            and data[:1] not in (b"\r", b"\n")
        ):
            self._raw_request = data

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        cache_hint, self.cache_hint = self.cache_hint, None
        was_long_poll, self.was_long_poll = self.was_long_poll, False
        self.prior_result = self.poll_deadline = None
        sent, reset = await super().finish_response(request, resp, start_time)
        if self._parser_at_boundary and not self.queued and not reset and sent.keep_alive:
            # aiohttp's task needs two iterations of the event loop until it waits again, and many clients are faster.
            self._ready_for_request = True
            if (
                cache_hint is not None
                and self._raw_request is not None
                and isinstance(sent, web.Response)
            ):
                if isinstance(cache_hint, int):
                    responses = (
                        self._listener_cache.poll_responses
                        if was_long_poll
                        else self._listener_cache
                    )
                    responses.store(self._raw_request, request, sent, cache_hint)
                else:
                    self._listener_cache.write_templates.store(
                        self._raw_request, request, sent, cache_hint
                    )
        return sent, reset

    def _start_write(self, data: bytes) -> bool:
        """Start a write by template; False if aiohttp must handle the request."""
        # The limit of the request line applies to all of it: then no limit of the parser is bypassed.
        if (
            len(data) > self.max_line_size
            or (found := self._listener_cache.write_templates.find(data)) is None
        ):
            return False
        template, value, lines = found
        request_context.CURRENT.set(self._context(lines))
        if lifecycle.draining() or (cancel := template.write(value, self._finish_write)) is None:
            return False
        self._start_request(_InFlight(data, cancel, self.loop.time(), template))
        return True

    def _context(self, lines: Mapping[bytes, bytes]) -> request_context.RequestContext:
        """Return the context of a request for logs and metadata, from its header lines that the cache key omits."""
        if self._peer is None and self.transport is not None:
            name = self.transport.get_extra_info("peername")
            self._peer = name[0] if isinstance(name, tuple) else request_context.UNIX_SOCKET
        peer = self._peer or request_context.UNIX_SOCKET
        if not lines:
            return request_context.RequestContext(peer, None, request_context.make_request_id())
        request_id, traceparent = (
            line.decode("ascii", "replace") if (line := lines.get(name)) is not None else None
            for name in (b"x-request-id", b"traceparent")
        )
        return request_context.of_headers(peer, None, request_id, traceparent)

    def _join_waitlist(self, data: bytes) -> bool:
        """Join the waitlist of a request; False if there is none."""
        if lifecycle.draining() or (found := self._listener_cache.waitlists.find(data)) is None:
            return False
        waitlist, request = found
        if not waitlist.join(self):
            return False
        self._start_request(_InFlight(request, partial(waitlist.leave, self), self.loop.time()))
        return True

    def find_waitlist(
        self, request: BaseRequest, make: MakeWaitlist, replacement: tuple[str, str] | None
    ) -> Waitlist | None:
        """Return the waitlist of the request in flight; None if there cannot be one."""
        if self._raw_request is None:
            return None
        return self._listener_cache.waitlists.find_waitlist(
            self._raw_request, request, make, replacement
        )

    def _start_request(self, in_flight: _InFlight) -> None:
        self._in_flight = in_flight
        self._hot = _NO_RESPONSES
        self.begin_request()

    def _finish_request(self) -> None:
        self._in_flight = None
        self.end_request()

    def _buffer_input(self, in_flight: _InFlight, data: bytes) -> None:
        """Buffer input that arrives while a request is in flight; over the limit, stop reading (backpressure)."""
        if in_flight.buffered is None:
            in_flight.buffered = deque()
        in_flight.buffered.append(data)
        if in_flight.buffer_full and self.transport is not None:
            self.transport.pause_reading()

    def _drain_input(self, in_flight: _InFlight) -> None:
        """Process the buffered input; then close the connection if the client has closed its side."""
        if in_flight.buffer_full and self.transport is not None:
            self.transport.resume_reading()
        # In the chunks that arrived: if one request of a chunk is malformed, aiohttp answers none of them.
        waiting = in_flight.buffered
        while waiting:
            self.data_received(waiting.popleft())
            if (again := self._in_flight) is not None:
                again.buffered = waiting
                break
        if self._half_closed and not self._has_unanswered and self.transport is not None:
            self.transport.close()

    def _finish_write(self, outcome: Outcome) -> None:
        """Send the response to a finished write, then process the buffered input."""
        in_flight, transport = self._in_flight, self.transport
        if in_flight is None:
            return
        self._finish_request()
        if transport is None or transport.is_closing() or in_flight.template is None:
            _count_disconnected(outcome)
            return
        if not (isinstance(outcome, BaseException) or lifecycle.draining()):
            self._respond(
                self._listener_cache.write_templates.render(in_flight.template, outcome.etag)
            )
            metrics.HTTP_REQUEST_DURATION_SECONDS.observe(
                self.loop.time() - in_flight.started, *in_flight.template.labels
            )
        elif isinstance(outcome, asyncio.CancelledError):
            self.force_close()
            return
        else:
            self.prior_result = outcome
            self._fall_back(in_flight.request)
            self._request_started = in_flight.started
        self._drain_input(in_flight)

    def recheck(self, limit: float) -> None:
        """Send the cached response of a long poll, or pass the request to its handler."""
        in_flight = self._in_flight
        if in_flight is None:
            return
        self._finish_request()
        if self.transport is None or self.transport.is_closing():
            return
        if (serialized := self._listener_cache.poll_responses.find(in_flight.request)) is not None:
            self._respond(serialized)
        else:
            self.poll_deadline = limit
            self._fall_back(in_flight.request)
        self._drain_input(in_flight)

    def connection_lost(self, exc: BaseException | None) -> None:
        in_flight = self._in_flight
        if in_flight is not None and in_flight.template is None:
            self._finish_request()
            in_flight.cancel()  # a write continues without its client
        super().connection_lost(exc)

    @property
    def used_at(self) -> float:
        # aiohttp does not know of requests in flight on the fast path, and would close the connection as idle.
        return self._served_until if self._in_flight is None else self.loop.time()

    def pause_writing(self) -> None:
        self._hot = _NO_RESPONSES
        super().pause_writing()

    def close(self) -> None:
        self._hot = _NO_RESPONSES
        super().close()

    def force_close(self) -> None:
        self._hot = _NO_RESPONSES
        super().force_close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Wait for the request in flight, as aiohttp does for its handlers, then cancel it."""
        self._hot = _NO_RESPONSES
        await super().shutdown(timeout)
        if self._in_flight is not None:
            self._in_flight.cancel()

    def detach(self, owner: ConnectionOwner) -> asyncio.Transport | None:
        self._hot = _NO_RESPONSES
        return super().detach(owner)


def _count_disconnected(outcome: Outcome) -> None:
    """Count the response to a client that has disconnected."""
    if not isinstance(outcome, BaseException):
        fastpath.count("200")
    elif isinstance(outcome, _errors.SidecarError):
        fastpath.count(str(problems.from_error(outcome).status))
