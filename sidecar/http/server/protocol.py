"""The connection protocol: what it adds to aiohttp's `RequestHandler`.

Problem documents instead of tracebacks, request metrics, an orderly drain, a header timeout,
and transports that can be detached from aiohttp. The fast path is a subclass, see `fastpath/protocol`.

It works for every application that `serve` runs, also one that knows nothing of `sidecar`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from sidecar.http import handler_api, problems
from sidecar.http.server import acknowledged, durations, framing, limits
from sidecar.http.server.access_log import LOGGER, AccessLog
from sidecar.http.server.aiohttp_protocol import READ_BUFFER_BYTES, AiohttpProtocol
from sidecar.process import lifecycle, metrics

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader
    from aiohttp.web_request import BaseRequest

    from sidecar.http.server.limits import ConnectionLimiter

_log = logging.getLogger(__name__)

HEAD_END = b"\r\n\r\n"
drain_callbacks: list[Callable[[], None]] = []
"""Called when a server has stopped listening: waiting requests must be answered now."""

_TLS_WRITE_BUFFER_BYTES = 1 << 16
"""Write buffer limit of a TLS transport, the same as without TLS; the default of uvloop is 512 KiB."""


class ConnectionOwner(Protocol):
    """The owner of a detached connection."""

    def writable(self) -> None:
        """The write buffer is empty again (`resume_writing`)."""

    def disconnected(self) -> None:
        """The connection is lost."""


class ServerProtocol(AiohttpProtocol):
    """The protocol of one connection; `limiter` tracks the open ones.

    The parser does not expose its state, so it is derived from its input and output:
    after bytes that end with an empty line, and whose last message is a request without a body,
    the parser is between two requests. In doubt it is assumed not to be.
    """

    __slots__ = (
        "_body",
        "_body_framing",
        "_body_truncated",
        "_disconnect_callbacks",
        "_half_closed",
        "_initial_deadline",
        "_limiter",
        "_owner",
        "_parser_at_boundary",
        "_request_started",
        "_surplus",
        "_unanswered_count",
        "client_transport",
        "tcp_transport",
    )

    def __init__(
        self,
        server: web.Server,
        limiter: ConnectionLimiter,
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        max_line_size: int,
        access_log: bool = False,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=keepalive_timeout,
            max_line_size=max_line_size,
            read_bufsize=READ_BUFFER_BYTES,
            access_log_class=AccessLog,
            # None is what AppRunner documents for "off".
            access_log=LOGGER if access_log else None,  # type: ignore[arg-type]
        )
        self._limiter = limiter
        self._parser_at_boundary = True
        """The parser is between two requests."""
        self._body: StreamReader | None = None
        """The request body that is still arriving, as far as is known."""
        self._body_framing = ""
        """Framing of the body: `length` or `chunks`; empty if unknown."""
        self._body_truncated = False
        """A part of the body was read from the socket, and not to its end."""
        self._unanswered_count = 0
        """Requests passed to aiohttp without a response yet."""
        self._request_started = 0.0
        """When the request that is being handled arrived, or its predecessor was answered (event loop clock)."""
        self._half_closed = False
        """The client has closed its side, and a response is pending."""
        self._initial_deadline = 0.0
        self._surplus = False
        """A surplus connection: it waits for its request, and closes after one response."""
        self._owner: ConnectionOwner | None = None
        self.client_transport: asyncio.Transport | None = None
        """The transport until it is closed, whoever owns it: aiohttp drops its reference earlier."""
        self.tcp_transport: asyncio.Transport | None = None
        """The TCP transport below that of TLS."""
        self._disconnect_callbacks: dict[Callable[[], None], bool] | None = None
        """Disconnect callbacks, and for each whether its request may wait for a long time."""

    @property
    def _waits_long(self) -> bool:
        """Whether a request may wait for a long time (a long poll)."""
        return self._disconnect_callbacks is not None and any(self._disconnect_callbacks.values())

    @property
    def _has_unanswered(self) -> bool:
        """Whether a response is pending."""
        return self._unanswered_count > 0

    @property
    def busy(self) -> bool:
        """Whether a request is being handled, or a response has not been sent completely."""
        unsent = any(
            transport.get_write_buffer_size()
            for transport in (self.client_transport, self.tcp_transport)
            if transport
        )
        return self.handling or unsent

    @property
    def idle_since(self) -> float | None:
        """When the connection became idle (event loop clock); None while it is busy.

        0 if it is closed, everything is sent, and only the close_notify of the TLS client is missing.
        """
        if self.client_transport is None or self.busy:
            return None
        if self.transport is None:
            return 0.0 if self._owner is None else None
        in_body = self._body is not None and not self._body.is_eof()
        if self._has_unanswered or in_body:
            return None
        return self.keepalive_deadline - self.keepalive_timeout

    @property
    def has_unacked_bytes(self) -> bool:
        """Whether the client has not acknowledged all data yet."""
        found = acknowledged.get_socket(self.client_transport)
        return found is not None and acknowledged.unacked_bytes(found.fileno()) > 0

    @property
    def awaiting_first_request(self) -> bool:
        """Whether the first request has not arrived yet."""
        return self.transport is not None and self.keepalive_deadline == self._initial_deadline

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._limiter.make_room():
            self._surplus = self.drops_input = True
            self.transport = transport  # type: ignore[assignment]  # a transport of a stream
            self._limiter.hold_surplus(self)
            return
        self._open(transport)

    def _open(self, transport: asyncio.BaseTransport) -> None:
        self.client_transport = transport  # type: ignore[assignment]  # a transport of a stream
        self._limiter.register(self)
        super().connection_made(transport)
        if transport.get_extra_info("sslcontext") is not None:
            transport.set_write_buffer_limits(_TLS_WRITE_BUFFER_BYTES)  # type: ignore[attr-defined]  # of a stream
        self._initial_deadline = self.keepalive_deadline

    def connection_lost(self, exc: BaseException | None) -> None:
        self._limiter.release_surplus(self)
        super().connection_lost(exc)
        if exc is None:
            self._limiter.unacked.close(self, self.client_transport)
        self._limiter.connections.discard(self)
        self.client_transport = self.tcp_transport = None
        for callback in list(self._disconnect_callbacks or ()):
            callback()
        if self._owner is not None:
            self._owner.disconnected()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio.Protocol has it
        """Answer the requests received before the client closed its side; see section 3.6 of RFC 9293.

        A client with a long poll or an incomplete body counts as disconnected: most clients that half-close are gone.
        """
        transport = self.transport
        unfinished = self._body is not None and not self._body.is_eof()
        if transport is None or self._waits_long or unfinished or not self._has_unanswered:
            return False
        # With TLS the event loop closes the connection whatever is returned.
        self._half_closed = transport.get_extra_info("sslcontext") is None
        return self._half_closed

    def data_received(self, data: bytes) -> None:
        if self._surplus and self.client_transport is None:
            self._read_surplus(data)
        if self.drops_input:
            return
        if self._parser_at_boundary:
            data = framing.lower_minor_version(data)
        self._parser_at_boundary = False
        if self.upgraded:
            super().data_received(data)
            return
        in_body = self._body is not None and not self._body.is_eof()
        before, taken = len(self.queued), self._body.total_bytes if in_body and self._body else 0
        super().data_received(data)
        if not self._unanswered_count and len(self.queued) > before:
            self._request_started = self.loop.time()
        self._unanswered_count += len(self.queued) - before
        self._update_parser_state(data, before, in_body=in_body)
        new = len(self.queued) - before
        if self._body is not None and self._body.is_eof() and (in_body or new):
            size = self._body.total_bytes - (0 if new else taken)
            if framing.has_data_after_body(self._body_framing, data, size, new):
                self._limiter.header_started(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._owner is not None:
            self._owner.writable()

    def detach(self, owner: ConnectionOwner) -> asyncio.Transport | None:
        """Detach the connection from aiohttp for a response without an end; None if the client has disconnected.

        While a handler runs, aiohttp holds two tasks, a request and a response: twice the memory that the connection needs.
        So the handler returns, `write_eof` calls this instead of ending the response, and aiohttp finds nothing to close.
        """
        transport = self.release_transport()
        if transport is not None:
            self._owner = owner
        return transport

    def lend_socket(self, body: StreamReader, taken: int) -> bool:
        """Pause reading, and let the caller read the rest of a body from the socket; `taken` bytes of it were consumed.

        False if bytes of the body are buffered here.
        """
        transport = self.transport
        if transport is None or body is not self._body or body.total_bytes != taken:
            return False
        if not transport.is_reading():
            return False
        transport.pause_reading()
        return True

    def return_socket(self, body: StreamReader, complete: bool) -> None:
        """Resume after a body that was read from the socket; if it is not complete, the connection cannot be used again."""
        self._body_truncated = not complete
        if self.transport is not None and complete:
            self.renew_parser()
            body.feed_eof()
        elif self.transport is not None:
            self.transport.resume_reading()

    def header_timeout_expired(self) -> bool:
        """Answer 408 and close, unless an earlier request is still being handled."""
        transport = self.transport
        if transport is None:
            return True
        if self._surplus and self.client_transport is None:
            self._read_surplus(b"")
            return True
        if self.handling:
            return False
        limit = self._limiter.head_timeout
        metrics.HTTP_REQUESTS_TOTAL.labels("408").inc()
        transport.write(
            limits.raw_response("request-timeout", f"the head was not complete after {limit:g} s")
        )
        self.force_close()
        return True

    def add_disconnect_callback(
        self, callback: Callable[[], None], *, waits_long: bool = False
    ) -> None:
        """Call `callback` when the client disconnects, until `remove_disconnect_callback`.

        `waits_long`: there is no response yet, so a client that closes its side counts as disconnected.
        """
        self._disconnect_callbacks = self._disconnect_callbacks or {}
        self._disconnect_callbacks[callback] = waits_long

    def remove_disconnect_callback(self, callback: Callable[[], None]) -> None:
        """Remove a disconnect callback."""
        if self._disconnect_callbacks is not None:
            self._disconnect_callbacks.pop(callback, None)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPExpectationFailed):
            # aiohttp raises it outside of all middlewares.
            resp = problems.from_http_exception(resp, request.path)
        answer: object = resp  # a user's handler may have returned anything
        if isinstance(answer, web.StreamResponse) and not answer.prepared:
            answer.headers.setdefault("Server", "sidecar")
            # A client that gets a final status instead of "100 Continue" may send the body or not:
            # the next bytes are ambiguous (RFC 9110 section 10.1.1).
            undecided = "Expect" in request.headers and not request.content.is_eof()
            last = self._half_closed and self._unanswered_count == 1
            if lifecycle.draining() or undecided or last or self._body_truncated or self._surplus:
                answer.force_close()
        if lifecycle.draining():
            self._limiter.unacked.add(self, self.client_transport)
        sent, reset = await super().finish_response(request, resp, start_time)
        self._unanswered_count -= 1
        started, self._request_started = self._request_started, self.loop.time()
        if handler_api.WAITED not in request:
            metrics.HTTP_REQUEST_DURATION_SECONDS.observe(
                self._request_started - started, *durations.labels(request)
            )
        if self._half_closed and not self._unanswered_count:
            self.close_when_answered()
        metrics.HTTP_REQUESTS_TOTAL.labels(str(sent.status)).inc()
        return sent, reset

    def _update_parser_state(self, data: bytes, before: int, *, in_body: bool) -> None:
        """Derive the state of the parser from its input and output."""
        transport = self.transport
        held_back = self.upgraded or transport is None or not transport.is_reading()
        if len(self.queued) == before:
            if data and not in_body and not held_back:
                self._limiter.header_started(self)  # the bytes are part of a head
            return
        self._limiter.header_finished(self)
        message: Any
        message, payload = self.queued[-1]
        if in_body and self._body is not None and not self._body.is_eof():
            # Within a body this is an error, and aiohttp would let the reader of the body wait for ever.
            error = web.RequestPayloadError(str(message.exc))
            self._body.set_exception(error)
            # A reader that was woken by a chunk in the same bytes waits once more without checking (`readany`).
            self.loop.call_soon(self._body.set_exception, error)
        self._body = None if payload is EMPTY_PAYLOAD else payload
        self._body_framing = framing.body_framing(message)
        if self._body is not None or held_back or not isinstance(message, RawRequestMessage):
            return
        self._parser_at_boundary = data.endswith(HEAD_END) and not message.upgrade
        if data and not self._parser_at_boundary:
            self._limiter.header_started(self)

    def evict(self) -> None:
        """Close this idle connection to make room for others."""
        client_transport = self.client_transport or self.transport
        if client_transport is not None:
            client_transport.close()
        if self.tcp_transport is not None:
            # A TLS transport waits 30 s for the close_notify of the client. Its own is sent in this iteration.
            self.loop.call_soon(self.tcp_transport.abort)

    def _read_surplus(self, data: bytes) -> None:
        """Accept a probe on a surplus connection; answer everything else with 503."""
        transport = self.transport
        if transport is None:
            return
        if limits.is_probe(data):
            self._limiter.release_surplus(self)
            self.drops_input = False
            self._open(transport)
        else:
            self._limiter.header_finished(self)
            self.client_transport = transport
            transport.write(self._limiter.rejection())
            transport.close()

    def log_exception(self, *args: object, exc_info: object = None, **options: object) -> None:
        if isinstance(exc_info, web.RequestPayloadError):
            # The rest of the body of a request that was already rejected.
            _log.debug("cannot read the rest of a body: %s", exc_info)
        else:
            super().log_exception(*args, exc_info=exc_info, **options)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a parser error, or to an exception of a handler without our middleware."""
        if problems.client_has_gone(request):
            _log.debug("a client went away in the middle of a request: %r", exc)
            raise ConnectionResetError("the client has disconnected")
        if request.writer.output_size > 0:
            _log.error(
                "the response to %s was cut off",
                request.path,
                exc_info=exc,
                extra={"event": "http.response_cut"},
            )
            raise ConnectionError("a part of the answer has been sent already")
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp fails to encode its own message about an expectation that is not ASCII.
            exc, status = web.HTTPExpectationFailed(), 417
        answer = problems.to_response(
            problems.from_aiohttp(status, exc, message, longest_line=self.max_line_size)
        )
        answer.force_close()
        return answer
