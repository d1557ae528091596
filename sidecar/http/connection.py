"""What a connection of ours does beyond aiohttp's.

Problems instead of tracebacks, a count, an orderly end, answers and writes by the lane,
a limit for the head of a request.

It works beneath every application that `serve` runs, also one that knows nothing of `sidecar`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from sidecar import _errors
from sidecar.http import guard as guards
from sidecar.http import lane as lanes
from sidecar.http import memfile, problems
from sidecar.runtime import metrics, running

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader
    from aiohttp.web_request import BaseRequest

    from sidecar.http.guard import Guard
    from sidecar.http.lane import Form, Lane, MakeRoom, Room, Wire, Write
    from sidecar.http.memfile import MemoryFile
    from sidecar.volume.commit import Outcome

_log = logging.getLogger(__name__)

_END = b"\r\n\r\n"
_READ_AHEAD = 1 << 14
"""Bytes of a body, half of those after which the client has to wait until somebody takes them.
With aiohttp's own 64 KiB a thousand uploads hold twice as much, and one is no faster."""
_TLS_AHEAD = 1 << 16
"""Bytes of answers that may wait to be encrypted, as without TLS they may wait to be sent: by itself uvloop holds 512 KiB."""
_MOST_HELD_BACK = 64 << 10
_MOST_PIECES = 64
"""Bytes, and pieces of them, that a client may send on while its request is under way, before it is not listened to
any more: a small piece takes more memory than its bytes."""


class Taker(Protocol):
    """Who has taken a connection over."""

    def resumed(self) -> None:
        """All that was written has been sent, after it could not be for a while."""

    def lost(self) -> None:
        """The connection is gone."""


@dataclass(eq=False, slots=True)
class _UnderWay:
    """A request that the lane has taken and not answered yet, and what has come after it.

    A write has the form that its answer fills; without one it waits for something newer.
    """

    request: bytes
    withdraw: Callable[[], None]
    form: Form | None = None
    held_back: deque[bytes] | None = None

    @property
    def full(self) -> bool:
        """Whether more is held back than one client is given; small pieces cost more than their bytes."""
        pieces = self.held_back or ()
        return sum(map(len, pieces)) > _MOST_HELD_BACK or len(pieces) > _MOST_PIECES


_NO_WIRES: dict[bytes, Wire] = {}
"""What a connection has where it must not answer at once. Never filled."""


class Connection(web.RequestHandler):
    """The protocol of one connection; `guard` holds those that are open.

    What the parser has begun and not finished cannot be asked of it. So it is concluded from what went in and came out:
    bytes that ended with an empty line, and of which the last came out as a request without a body,
    leave it between two requests. In doubt it is held to be somewhere else.
    """

    __slots__ = ("_alone", "_at_boundary", "_body", "_body_is_cut", "_clean", "_guard", "_half_closed", "_lane", "_lost", "_made", "_owed", "_refused", "_served_until", "_socket", "_taken", "_taker", "_under_way", "_wires", "limit", "offered", "outcome", "waited")  # fmt: skip

    def __init__(
        self,
        server: web.Server,
        guard: Guard,
        lane: Lane | None,
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        max_line_size: int,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=keepalive_timeout,
            max_line_size=max_line_size,
            read_bufsize=_READ_AHEAD,
            access_log=None,  # type: ignore[arg-type]  # None is what AppRunner documents for "off"
        )
        self._guard = guard
        self._lane = lane
        self.offered: int | Write | None = None
        """What a handler has offered to be remembered: the lane's generation of its answer, or how to write."""
        self.outcome: Outcome | None = None
        """What became already of the request that aiohttp has been given."""
        self.waited = False
        """Whether what is offered is the answer to those alone who have waited for it."""
        self.limit: float | None = None
        """Until when it may wait, if it has waited without aiohttp before."""
        self._under_way: _UnderWay | None = None
        self._wires = _NO_WIRES
        """The answers of the lane that can be given at once: those of this second, once it has been looked whether
        this connection is idle, and none as soon as it is not. So an answer costs one look into a table."""
        self._served_until = 0.0
        """The end of the second in which one of them was given last."""
        self._socket: int | None = None
        """The number of its socket, once it has been asked for."""
        self._clean = True
        """The parser stands between two requests."""
        self._at_boundary = True
        """The same, and all requests have been answered."""
        self._alone: bytes | None = None
        """The bytes of the request under way, if they came alone and complete."""
        self._body: StreamReader | None = None
        """The body that is still coming in, as far as is known."""
        self._body_is_cut = False
        """Somebody else has read a part of it, and has not come to its end."""
        self._owed = 0
        """Requests that aiohttp has been given and has not answered."""
        self._half_closed = False
        """The client has closed its side, and is still owed an answer."""
        self._made = 0.0
        self._refused = False
        self._taker: Taker | None = None
        self._taken: asyncio.Transport | None = None
        self._lost: dict[Callable[[], None], bool] | None = None
        """What is called when the client has gone, and whether it may be a long time until it is answered."""

    @property
    def _patient(self) -> bool:
        return self._lost is not None and any(self._lost.values())

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or an answer has not left this process yet."""
        transport = self.transport or self._taken
        unsent = transport is not None and transport.get_write_buffer_size() > 0
        return self._request_in_progress or bool(self._messages) or unsent

    @property
    def fresh(self) -> bool:
        """Whether its first request has not come yet."""
        untouched = self._next_keepalive_close_time == self._made and not self._served_until
        return untouched and self.transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._guard.full:
            self._refuse(transport)  # type: ignore[arg-type]  # a transport of a stream
            return
        self._guard.connections.add(self)
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
            return _begun(serving, serving.send(None))

    def connection_lost(self, exc: BaseException | None) -> None:
        self._guard.head_ends(self)
        if self._refused:
            self._refused = False
            self._guard.refused_is_gone()
        under_way = self._under_way
        if under_way is not None and under_way.form is None:
            self._end()
            under_way.withdraw()  # a write goes on, whoever is there to be told of it
        super().connection_lost(exc)
        self._guard.connections.discard(self)
        for callback in list(self._lost or ()):
            callback()
        if self._taker is not None:
            self._taken = None
            self._taker.lost()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio.Protocol has it
        """Answer what was asked before the client closed its side; see section 3.6 of RFC 9293.

        Who waits for something newer, or has left a body unfinished, is taken for gone: most clients that end are.
        """
        transport, under_way = self.transport, self._under_way
        waits = self._patient or (under_way is not None and under_way.form is None)
        unfinished = self._body is not None and not self._body.is_eof()
        if transport is None or waits or unfinished or not (self._owed or under_way):
            return False
        # With TLS an event loop closes whatever is returned.
        self._half_closed = transport.get_extra_info("sslcontext") is None
        return self._half_closed

    def data_received(self, data: bytes) -> None:
        """Answer from the lane where that is possible, else let aiohttp do its work."""
        # An empty table would want to know the hash of what is looked up: of a whole piece of an upload.
        found = self._wires.get(data) if self._wires else None
        if found is None:
            self._consider(data)
            return
        wire, counter, self._served_until = found
        counter.number += 1
        if wire.__class__ is bytes:
            self.transport.write(wire)  # type: ignore[union-attr]  # data comes over a transport
        else:
            self._send(wire)  # type: ignore[arg-type]  # a long one

    def _consider(self, data: bytes) -> None:
        """Look what can be done with bytes, by all that is known of this connection."""
        if self._under_way is not None:
            self._hold_back(self._under_way, data)
            return
        if (
            self._at_boundary
            and self._lane is not None
            and not (self._close or self._force_close)
            and not self._paused  # aiohttp waits for a client that does not take its answers
        ):
            self._wires = self._lane.wires
            if (wire := self._lane.find(data)) is not None:
                self._answer(wire)
                return
            if self._write(self._lane, data) or self._wait(self._lane, data):
                return
        self._give_to_aiohttp(data)

    def _answer(self, wire: bytes | MemoryFile) -> None:
        if isinstance(wire, bytes):
            self.transport.write(wire)  # type: ignore[union-attr]  # who is answered is there
        else:
            self._send(wire)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    def _send(self, wire: MemoryFile) -> None:
        transport: Any = self.transport
        if self._socket is None:
            self._socket = memfile.socket_of(transport)
        wire.send(transport, self._socket)

    def _give_to_aiohttp(self, data: bytes) -> None:
        if self._force_close or self._close:
            if self._refused and self.transport is not None:
                self.transport.close()
            return
        at_boundary = self._at_boundary
        self._at_boundary = self._clean = False
        self._wires = _NO_WIRES
        self._alone = None
        if self._upgraded:
            super().data_received(data)
            return
        in_body = self._body is not None and not self._body.is_eof()
        before = len(self._messages)
        super().data_received(data)
        self._owed += len(self._messages) - before
        self._conclude(data, before, in_body=in_body)
        if at_boundary and self._clean and len(self._messages) == 1 and data.count(_END) == 1:
            self._alone = data

    def _write(self, lane: Lane, data: bytes) -> bool:
        """Begin a write that the lane can do; False if it is one for aiohttp."""
        # The longest that the first line alone may be: no limit of the parser can be met then.
        if len(data) > self.max_line_size or (found := lane.forms.find(data)) is None:
            return False
        form, value = found
        if running.draining() or (withdraw := form.write(value, self._written)) is None:
            return False
        self._begin(_UnderWay(data, withdraw, form))
        return True

    def _wait(self, lane: Lane, data: bytes) -> bool:
        """Wait in a room for what these bytes ask for; False if there is none."""
        if running.draining() or (found := lane.rooms.find(data)) is None:
            return False
        room, request = found
        if not room.enter(self):
            return False
        self._begin(_UnderWay(request, partial(room.leave, self)))
        return True

    def room_for(
        self, request: BaseRequest, make: MakeRoom, instead: tuple[str, str] | None
    ) -> Room | None:
        """Return the room of all who ask in the words of the request under way; None if there can be none."""
        if self._lane is None or self._alone is None:
            return None
        return self._lane.rooms.room_for(self._alone, request, make, instead)

    def _begin(self, under_way: _UnderWay) -> None:
        self._under_way = under_way
        self._wires = _NO_WIRES
        self._request_in_progress = True  # as aiohttp has it while a handler runs

    def _end(self) -> None:
        self._under_way = None
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)

    def _hold_back(self, under_way: _UnderWay, data: bytes) -> None:
        """Keep what comes before its turn. It is not read on for ever: who sends is to feel that it is too early."""
        if under_way.held_back is None:
            under_way.held_back = deque()
        under_way.held_back.append(data)
        if under_way.full:
            self._pause_transport_reading()

    def _go_on(self, under_way: _UnderWay) -> None:
        """Read what was held back; close when that was all, of a client that has closed its side."""
        if under_way.full:
            self._resume_transport_reading()
        # As it came: of bytes that come at once, aiohttp answers no request if one of them is malformed.
        waiting = under_way.held_back
        while waiting:
            self.data_received(waiting.popleft())
            if (again := self._under_way) is not None:
                again.held_back = waiting
                break
        done = self._half_closed and not (self._owed or self._under_way)
        if done and self.transport is not None:
            self.transport.close()

    def _written(self, outcome: Outcome) -> None:
        """Answer a write that has ended, and go on with what was held back."""
        under_way, transport = self._under_way, self.transport
        if under_way is None or self._lane is None:
            return
        self._end()
        if transport is None or transport.is_closing() or under_way.form is None:
            _count_for_nobody(outcome)
            return
        if not (isinstance(outcome, BaseException) or running.draining()):
            self._answer(self._lane.forms.fill(under_way.form, outcome.etag))
        elif isinstance(outcome, asyncio.CancelledError):
            self.force_close()
            return
        else:
            self.outcome = outcome
            self._give_to_aiohttp(under_way.request)
        self._go_on(under_way)

    def look_again(self, limit: float) -> None:
        """Answer who has waited, as all others who did so with the same words; else let its handler look."""
        under_way = self._under_way
        if under_way is None or self._lane is None:
            return
        self._end()
        if self.transport is None or self.transport.is_closing():
            return
        if (wire := self._lane.told.find(under_way.request)) is not None:
            self._answer(wire)
        else:
            self.limit = limit
            self._give_to_aiohttp(under_way.request)
        self._go_on(under_way)

    def _process_keepalive(self) -> None:
        # aiohttp knows of no request that the lane has taken, and takes the connection for an idle one.
        used = self._served_until if self._under_way is None else self._loop.time()
        self._next_keepalive_close_time = max(
            self._next_keepalive_close_time, used + self._keepalive_timeout
        )
        super()._process_keepalive()

    def pause_writing(self) -> None:
        self._wires = _NO_WIRES
        super().pause_writing()

    def close(self) -> None:
        self._wires = _NO_WIRES
        super().close()

    def force_close(self) -> None:
        self._wires = _NO_WIRES
        super().force_close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Wait for what is under way, as aiohttp does for its handlers, and give it up after that."""
        self._wires = _NO_WIRES
        await super().shutdown(timeout)
        if self._under_way is not None:
            self._under_way.withdraw()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taker is not None:
            self._taker.resumed()

    def take(self, taker: Taker) -> asyncio.Transport | None:
        """Hand the connection over for good, when an answer that has no end has begun; None if it is gone.

        aiohttp holds two tasks, a request and an answer as long as a handler runs: twice of what the connection needs.
        So the handler returns, its answer calls this instead of ending, and aiohttp finds nothing to close.
        """
        transport, self.transport = self.transport, None
        self._wires = _NO_WIRES
        if transport is not None:
            self._taken, self._taker = transport, taker
            self._close = True  # what the client still says is dropped
            self._messages.clear()
            self._parser = None
        return transport

    def lend(self, body: StreamReader, taken: int) -> bool:
        """Read no more, and let somebody else read the rest of a body from the socket, of which `taken` bytes were given out.

        False if there are bytes here that were not.
        """
        if body is not self._body or body.total_bytes != taken or self._reading_paused:
            return False
        self._pause_transport_reading()
        return True

    def take_back(self, body: StreamReader, complete: bool) -> None:
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
        else:
            self._resume_transport_reading()

    def head_is_late(self) -> bool:
        """Answer 408 and close, unless an earlier request is still being answered."""
        transport = self.transport
        if transport is None:
            return True
        if self._refused:
            transport.close()
            return True
        if self._request_in_progress or self._messages:
            return False
        limit = self._guard.head_timeout
        metrics.HTTP_REQUESTS_TOTAL.labels("408").inc()
        transport.write(
            guards.answer("request-timeout", f"the head was not complete after {limit:g} s")
        )
        self.force_close()
        return True

    def on_lost(self, callback: Callable[[], None], *, patient: bool = False) -> None:
        """Call back when the client has gone, unless `off_lost` has been called before.

        `patient`: there is nothing to answer yet, so a client that closes its side counts as gone.
        """
        self._lost = self._lost or {}
        self._lost[callback] = patient

    def off_lost(self, callback: Callable[[], None]) -> None:
        """Do not call back any more."""
        if self._lost is not None:
            self._lost.pop(callback, None)

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPExpectationFailed):
            # aiohttp raises it outside of all middlewares.
            resp = problems.from_http(resp, request.path)
        answer: object = resp  # a handler of a user may have returned anything
        if isinstance(answer, web.StreamResponse) and not answer.prepared:
            answer.headers.setdefault("Server", "sidecar")
            # Who waits for "100 Continue" and is refused may send the body or not:
            # what comes next on this connection could be either (RFC 9110 section 10.1.1).
            undecided = "Expect" in request.headers and not request.content.is_eof()
            last = self._half_closed and self._owed == 1
            if running.draining() or undecided or last or self._body_is_cut:
                answer.force_close()
        offered, self.offered = self.offered, None
        waited, self.waited = self.waited, False
        self.outcome = self.limit = None
        sent, reset = await super().finish_response(request, resp, start_time)
        self._owed -= 1
        if self._half_closed and not self._owed:
            self._close = True
        if self._clean and not self._messages and not reset and sent.keep_alive:
            # The task of aiohttp takes two turns of the loop until it waits again, and many a client is faster.
            self._at_boundary = True
            if (
                offered is not None
                and self._lane is not None
                and self._alone is not None
                and isinstance(sent, web.Response)
            ):
                if isinstance(offered, int):
                    answers = self._lane.told if waited else self._lane
                    answers.keep(self._alone, request, sent, offered)
                else:
                    self._lane.forms.keep(self._alone, request, sent, offered)
        metrics.HTTP_REQUESTS_TOTAL.labels(str(sent.status)).inc()
        return sent, reset

    def _conclude(self, data: bytes, before: int, *, in_body: bool) -> None:
        """Conclude from bytes, and from what has come out of the parser for them, where it stands."""
        held_back = self._upgraded or self._buffer_paused or self._reading_paused
        if len(self._messages) == before:
            if data and not in_body and not held_back:
                self._guard.head_begins(self)  # only a head can have taken them
            return
        self._guard.head_ends(self)
        message: Any
        message, payload = self._messages[-1]
        self._body = None if payload is EMPTY_PAYLOAD else payload
        if self._body is not None or held_back or not isinstance(message, RawRequestMessage):
            return
        self._clean = data.endswith(_END) and not message.upgrade
        if data and not self._clean:
            self._guard.head_begins(self)

    def _refuse(self, transport: asyncio.Transport) -> None:
        self._force_close = True
        if not self._guard.refuse(transport):
            transport.close()
            return
        self._refused = True
        self.transport = transport
        self._guard.head_begins(self)

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
        answer = problems.plain(
            problems.from_aiohttp(status, exc, message, longest_line=self.max_line_size)
        )
        answer.force_close()
        return answer


@types.coroutine
def _begun(coroutine: Coroutine[Any, Any, None], awaited: object) -> Generator[Any, Any, None]:
    """Go on with a coroutine that has run until it awaited something."""
    try:
        yield awaited
    except BaseException as error:
        coroutine.throw(error)
        raise
    yield from coroutine


def _count_for_nobody(outcome: Outcome) -> None:
    """Count the answer to somebody who has gone meanwhile."""
    if not isinstance(outcome, BaseException):
        lanes.count("200")
    elif isinstance(outcome, _errors.SidecarError):
        lanes.count(str(problems.of(outcome).status))
