"""What a connection of ours does beyond aiohttp's.

Problems instead of tracebacks, a count, an orderly end, a limit for the head of a request,
and whoever has a better use for its transport may have it. What the lane does is in `express`.

It works beneath every application that `serve` runs, also one that knows nothing of `sidecar`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from aiohttp import web
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from sidecar.http import problems
from sidecar.http.server import access_log as access_logs
from sidecar.http.server import acknowledged, framing, limits
from sidecar.process import lifecycle, metrics

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader
    from aiohttp.web_request import BaseRequest

    from sidecar.http.server.limits import ConnectionLimiter

_log = logging.getLogger(__name__)

END = b"\r\n\r\n"
PRIVATE_NAMES = frozenset(
    {
        "_close",
        "_force_close",
        "_handler_waiter",
        "_loop",
        "_max_msg_queue_size",
        "_messages",
        "_next_keepalive_close_time",
        "_parser",
        "_process_keepalive",
        "_request_in_progress",
        "_upgraded",
    }
)
"""What `ServerProtocol` and `FastPathProtocol` use of aiohttp's `RequestHandler` that is not public: it may change with any release.
A test compares it with what they use."""
if _gone := sorted(name for name in PRIVATE_NAMES if not hasattr(web.RequestHandler, name)):
    raise ImportError(
        f"this aiohttp ({aiohttp.__version__}) has no RequestHandler.{', RequestHandler.'.join(_gone)}:"
        " install one of the versions that sidecar names in its metadata (pip install --upgrade podsidecar)"
    )
drain_callbacks: list[Callable[[], None]] = []
"""Called when a server has stopped listening: whoever lets requests wait answers them now."""

_READ_AHEAD = 1 << 14
"""Bytes of a body, half of those after which the client has to wait until somebody takes them.
With aiohttp's own 64 KiB a thousand uploads hold twice as much, and one is no faster."""
_TLS_AHEAD = 1 << 16
"""Bytes of answers that may wait to be encrypted, as without TLS they may wait to be sent: by itself uvloop holds 512 KiB."""


class ConnectionOwner(Protocol):
    """Who has taken a connection over."""

    def resumed(self) -> None:
        """All that was written has been sent, after it could not be for a while."""

    def lost(self) -> None:
        """The connection is gone."""


class ServerProtocol(web.RequestHandler):
    """The protocol of one connection; `guard` holds those that are open.

    What the parser has begun and not finished cannot be asked of it. So it is concluded from what went in and came out:
    bytes that ended with an empty line, and of which the last came out as a request without a body,
    leave it between two requests. In doubt it is held to be somewhere else.
    """

    __slots__ = (
        "_body",
        "_body_form",
        "_body_is_cut",
        "_clean",
        "_guard",
        "_half_closed",
        "_lost",
        "_made",
        "_owed",
        "_surplus",
        "_taker",
        "beneath",
        "wire",
    )

    def __init__(
        self,
        server: web.Server,
        guard: ConnectionLimiter,
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
            read_bufsize=_READ_AHEAD,
            access_log_class=access_logs.AccessLog,
            # None is what AppRunner documents for "off".
            access_log=access_logs.LOGGER if access_log else None,  # type: ignore[arg-type]
        )
        self._guard = guard
        self._clean = True
        """The parser stands between two requests."""
        self._body: StreamReader | None = None
        """The body that is still coming in, as far as is known."""
        self._body_form = ""
        """How its end is found: by its `length`, by its `chunks`; empty where nothing is known of it."""
        self._body_is_cut = False
        """Somebody else has read a part of it, and has not come to its end."""
        self._owed = 0
        """Requests that aiohttp has been given and has not answered."""
        self._half_closed = False
        """The client has closed its side, and is still owed an answer."""
        self._made = 0.0
        self._surplus = False
        """There was no room for it: it is held until it says what it wants, and closed after one answer."""
        self._taker: ConnectionOwner | None = None
        self.wire: asyncio.Transport | None = None
        """The transport until its end, whoever has it: aiohttp forgets one that it has closed."""
        self.beneath: asyncio.Transport | None = None
        """The transport of TCP beneath that of TLS."""
        self._lost: dict[Callable[[], None], bool] | None = None
        """What is called when the client has gone, and whether it may be a long time until it is answered."""

    @property
    def _patient(self) -> bool:
        """Whether it may be a long time until the answer comes."""
        return self._lost is not None and any(self._lost.values())

    @property
    def _owes(self) -> bool:
        """Whether an answer is still to come."""
        return self._owed > 0

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or an answer has not left this process yet."""
        unsent = any(one.get_write_buffer_size() for one in (self.wire, self.beneath) if one)
        return self._request_in_progress or bool(self._messages) or unsent

    @property
    def idle_since(self) -> float | None:
        """Since when it has waited for a request, by the clock of the loop; None while there is something to do.

        0 if it is closed, all of it is sent, and it is the client's word that it waits for, as TLS has it.
        """
        if self.wire is None or self.busy:
            return None
        if self.transport is None:
            return 0.0 if self._taker is None else None
        in_body = self._body is not None and not self._body.is_eof()
        if self._owes or in_body:
            return None
        return self._next_keepalive_close_time - self.keepalive_timeout

    @property
    def owes_bytes(self) -> bool:
        """Whether the client has not acknowledged yet all that it was sent."""
        found = acknowledged.socket_of(self.wire)
        return found is not None and acknowledged.unacked_bytes(found.fileno()) > 0

    @property
    def fresh(self) -> bool:
        """Whether its first request has not come yet."""
        return self.transport is not None and self._next_keepalive_close_time == self._made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._guard.has_room():
            self._surplus = self._force_close = True
            self.transport = transport  # type: ignore[assignment]  # a transport of a stream
            self._guard.hear(self)
            return
        self._open(transport)

    def _open(self, transport: asyncio.BaseTransport) -> None:
        self.wire = transport  # type: ignore[assignment]  # a transport of a stream
        self._guard.begins(self)
        super().connection_made(transport)
        if transport.get_extra_info("sslcontext") is not None:
            transport.set_write_buffer_limits(_TLS_AHEAD)  # type: ignore[attr-defined]  # of a stream
        self._made = self._next_keepalive_close_time  # each request sets it anew

    if sys.version_info < (3, 12):

        def start(self) -> Coroutine[Any, Any, None]:
            """Begin at once to wait for the first request, as aiohttp does where asyncio has eager tasks.

            Otherwise a request that comes with the connection is there before anybody waits for it.
            """
            serving = super().start()
            return begun(serving, serving.send(None))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._guard.heard(self)
        super().connection_lost(exc)
        if exc is None:
            self._guard.held.close(self, self.wire)
        self._guard.connections.discard(self)
        self.wire = self.beneath = None
        for callback in list(self._lost or ()):
            callback()
        if self._taker is not None:
            self._taker.lost()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio.Protocol has it
        """Answer what was asked before the client closed its side; see section 3.6 of RFC 9293.

        Who waits for something newer, or has left a body unfinished, is taken for gone: most clients that end are.
        """
        transport = self.transport
        unfinished = self._body is not None and not self._body.is_eof()
        if transport is None or self._patient or unfinished or not self._owes:
            return False
        # With TLS an event loop closes whatever is returned.
        self._half_closed = transport.get_extra_info("sslcontext") is None
        return self._half_closed

    def data_received(self, data: bytes) -> None:
        if self._surplus and self.wire is None:
            self._hear(data)
        if self._force_close or self._close:
            return
        if self._clean:
            data = framing.as_known_version(data)
        self._clean = False
        if self._upgraded:
            super().data_received(data)
            return
        in_body = self._body is not None and not self._body.is_eof()
        before, taken = len(self._messages), self._body.total_bytes if in_body and self._body else 0
        super().data_received(data)
        self._owed += len(self._messages) - before
        self._conclude(data, before, in_body=in_body)
        new = len(self._messages) - before
        if self._body is not None and self._body.is_eof() and (in_body or new):
            size = self._body.total_bytes - (0 if new else taken)
            if framing.goes_on_behind_body(self._body_form, data, size, new):
                self._guard.header_started(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taker is not None:
            self._taker.resumed()

    def take(self, taker: ConnectionOwner) -> asyncio.Transport | None:
        """Hand the connection over for good, when an answer that has no end has begun; None if it is gone.

        aiohttp holds two tasks, a request and an answer as long as a handler runs: twice of what the connection needs.
        So the handler returns, its answer calls this instead of ending, and aiohttp finds nothing to close.
        """
        transport, self.transport = self.transport, None
        if transport is not None:
            self._taker = taker
            self._close = True  # what the client still says is dropped
            self._messages.clear()
            self._parser = None
        return transport

    def lend_socket(self, body: StreamReader, taken: int) -> bool:
        """Read no more, and let somebody else read the rest of a body from the socket, of which `taken` bytes were given out.

        False if there are bytes here that were not.
        """
        transport = self.transport
        if transport is None or body is not self._body or body.total_bytes != taken:
            return False
        if not transport.is_reading():
            return False
        transport.pause_reading()
        return True

    def return_socket(self, body: StreamReader, complete: bool) -> None:
        """Go on after the body, if somebody else has read it to its end; else nothing can follow any more."""
        self._body_is_cut = not complete
        if self.transport is not None and complete:
            # The parser waits for bytes that it will never see: another one reads what follows.
            self._parser = HttpRequestParser(
                self,
                self._loop,
                _READ_AHEAD,
                max_line_size=self.max_line_size,
                max_field_size=self.max_field_size,
                max_headers=self.max_headers,
                payload_exception=web.RequestPayloadError,
                max_msg_queue_size=self._max_msg_queue_size,
            )
            body.feed_eof()
        elif self.transport is not None:
            self.transport.resume_reading()

    def header_timeout_expired(self) -> bool:
        """Answer 408 and close, unless an earlier request is still being answered."""
        transport = self.transport
        if transport is None:
            return True
        if self._surplus and self.wire is None:
            self._hear(b"")
            return True
        if self._request_in_progress or self._messages:
            return False
        limit = self._guard.head_timeout
        metrics.HTTP_REQUESTS_TOTAL.labels("408").inc()
        transport.write(
            limits.raw_response("request-timeout", f"the head was not complete after {limit:g} s")
        )
        self.force_close()
        return True

    def add_disconnect_callback(
        self, callback: Callable[[], None], *, patient: bool = False
    ) -> None:
        """Call back when the client has gone, unless `remove_disconnect_callback` has been called before.

        `patient`: there is nothing to answer yet, so a client that closes its side counts as gone.
        """
        self._lost = self._lost or {}
        self._lost[callback] = patient

    def remove_disconnect_callback(self, callback: Callable[[], None]) -> None:
        """Do not call back any more."""
        if self._lost is not None:
            self._lost.pop(callback, None)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPExpectationFailed):
            # aiohttp raises it outside of all middlewares.
            resp = problems.from_http_exception(resp, request.path)
        answer: object = resp  # a handler of a user may have returned anything
        if isinstance(answer, web.StreamResponse) and not answer.prepared:
            answer.headers.setdefault("Server", "sidecar")
            # Who waits for "100 Continue" and is refused may send the body or not:
            # what comes next on this connection could be either (RFC 9110 section 10.1.1).
            undecided = "Expect" in request.headers and not request.content.is_eof()
            last = self._half_closed and self._owed == 1
            if lifecycle.draining() or undecided or last or self._body_is_cut or self._surplus:
                answer.force_close()
        if lifecycle.draining():
            self._guard.held.add(self, self.wire)
        sent, reset = await super().finish_response(request, resp, start_time)
        self._owed -= 1
        if self._half_closed and not self._owed:
            self._close = True
        metrics.HTTP_REQUESTS_TOTAL.labels(str(sent.status)).inc()
        return sent, reset

    def _conclude(self, data: bytes, before: int, *, in_body: bool) -> None:
        """Conclude from bytes, and from what has come out of the parser for them, where it stands."""
        transport = self.transport
        held_back = self._upgraded or transport is None or not transport.is_reading()
        if len(self._messages) == before:
            if data and not in_body and not held_back:
                self._guard.header_started(self)  # only a head can have taken them
            return
        self._guard.header_finished(self)
        message: Any
        message, payload = self._messages[-1]
        if in_body and self._body is not None and not self._body.is_eof():
            # In the middle of a body that is an error, and aiohttp would let whoever reads it wait for the rest.
            error = web.RequestPayloadError(str(message.exc))
            self._body.set_exception(error)
            # Whoever was woken for a chunk before it, in the same bytes, waits once more and does not look (`readany`).
            self._loop.call_soon(self._body.set_exception, error)
        self._body = None if payload is EMPTY_PAYLOAD else payload
        self._body_form = framing.body_form(message)
        if self._body is not None or held_back or not isinstance(message, RawRequestMessage):
            return
        self._clean = data.endswith(END) and not message.upgrade
        if data and not self._clean:
            self._guard.header_started(self)

    def give_way(self) -> None:
        """Close, because others need the room, and nobody is owed an answer here."""
        wire = self.wire or self.transport
        if wire is not None:
            wire.close()
        if self.beneath is not None:
            # A transport of TLS waits half a minute for the client's word. What it has to say itself goes out in this turn.
            self._loop.call_soon(self.beneath.abort)

    def _hear(self, data: bytes) -> None:
        """Let a probe in, for which there is no room; tell everybody else."""
        transport = self.transport
        if transport is None:
            return
        if limits.is_probe(data):
            self._guard.heard(self)
            self._force_close = False
            self._open(transport)
        else:
            self._guard.header_finished(self)
            self.wire = transport
            transport.write(self._guard.refusal())
            transport.close()

    def log_exception(self, *args: object, exc_info: object = None, **options: object) -> None:
        if isinstance(exc_info, web.RequestPayloadError):
            # The rest of a body that nobody wants any more: it was refused with an answer.
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
        """Answer what the parser refuses, and what a handler without our middleware let through."""
        if problems.client_has_gone(request):
            _log.debug("a client went away in the middle of a request: %r", exc)
            raise ConnectionResetError("the client has gone")
        if request.writer.output_size > 0:
            _log.error("an answer to %s broke off in the middle", request.path, exc_info=exc)
            raise ConnectionError("a part of the answer has been sent already")
        if isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers:
            # aiohttp stumbles over its own message about an expectation that is not ASCII.
            exc, status = web.HTTPExpectationFailed(), 417
        answer = problems.to_response(
            problems.from_aiohttp(status, exc, message, longest_line=self.max_line_size)
        )
        answer.force_close()
        return answer


@types.coroutine
def begun(coroutine: Coroutine[Any, Any, None], awaited: object) -> Generator[Any, Any, None]:
    """Go on, in a task, with a coroutine that has run until it awaited something."""
    try:
        yield awaited
    except BaseException as error:  # noqa: BLE001 (it is the coroutine's)
        try:
            awaited = coroutine.throw(error)
        except StopIteration:
            return
        yield from begun(coroutine, awaited)
    else:
        yield from coroutine
