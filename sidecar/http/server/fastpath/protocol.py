"""A connection that asks the lane first, and aiohttp for what the lane does not know.

An answer that is remembered is written without a task, a request or a handler.
A write, or a wait for something newer, is a request under way of which aiohttp knows nothing:
what comes meanwhile is held back, and then everything is as aiohttp has left it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sidecar import _errors
from sidecar.http import problems
from sidecar.http.server import fastpath, memfd
from sidecar.http.server.protocol import END, ConnectionOwner, ServerProtocol
from sidecar.process import lifecycle, logging

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

    from sidecar.http.handler_api import MakeWaitlist, Waitlist, WriteFunction
    from sidecar.http.server.fastpath import ListenerCache
    from sidecar.http.server.fastpath.response_cache import HotResponse
    from sidecar.http.server.fastpath.write_templates import WriteTemplate
    from sidecar.http.server.limits import ConnectionLimiter
    from sidecar.http.server.memfd import MemFd
    from sidecar.volume.publish.group_commit import Outcome

_MOST_HELD_BACK = 64 << 10
_MOST_PIECES = 64
"""Bytes, and pieces of them, that a client may send on while its request is under way, before it is not listened to
any more: a small piece takes more memory than its bytes."""


@dataclass(eq=False, slots=True)
class _InFlight:
    """A request that the lane has taken and not answered yet, and what has come after it.

    A write has the form that its answer fills; without one it waits for something newer.
    """

    request: bytes
    withdraw: Callable[[], None]
    form: WriteTemplate | None = None
    held_back: deque[bytes] | None = None

    @property
    def full(self) -> bool:
        """Whether more is held back than one client is given; small pieces cost more than their bytes."""
        pieces = self.held_back or ()
        return sum(map(len, pieces)) > _MOST_HELD_BACK or len(pieces) > _MOST_PIECES


_NO_WIRES: dict[bytes, HotResponse] = {}
"""What a connection has where it must not answer at once. Never filled."""


class FastPathProtocol(ServerProtocol):
    """The protocol of one connection at a place whose answers are in `lane`."""

    __slots__ = (
        "_alone",
        "_at_boundary",
        "_lane",
        "_peer",
        "_served_until",
        "_socket",
        "_under_way",
        "_wires",
        "limit",
        "offered",
        "outcome",
        "waited",
    )

    def __init__(
        self,
        server: web.Server,
        guard: ConnectionLimiter,
        lane: ListenerCache,
        *,
        loop: asyncio.AbstractEventLoop,
        keepalive_timeout: float,
        max_line_size: int,
    ) -> None:
        super().__init__(
            server,
            guard,
            loop=loop,
            keepalive_timeout=keepalive_timeout,
            max_line_size=max_line_size,
        )
        self._lane = lane
        self._peer: str | None = None
        self.offered: int | WriteFunction | None = None
        """What a handler has offered to be remembered: the lane's generation of its answer, or how to write."""
        self.outcome: Outcome | None = None
        """What became already of the request that aiohttp has been given."""
        self.waited = False
        """Whether what is offered is the answer to those alone who have waited for it."""
        self.limit: float | None = None
        """Until when it may wait, if it has waited without aiohttp before."""
        self._under_way: _InFlight | None = None
        self._wires = _NO_WIRES
        """The answers of the lane that can be given at once: those of this second, once it has been looked whether
        this connection is idle, and none as soon as it is not. So an answer costs one look into a table."""
        self._served_until = 0.0
        """The end of the second in which one of them was given last."""
        self._socket: int | None = None
        """The number of its socket, once it has been asked for."""
        self._at_boundary = True
        """The parser stands between two requests, and all have been answered."""
        self._alone: bytes | None = None
        """The bytes of the request under way, if they came alone and complete."""

    @property
    def fresh(self) -> bool:
        return super().fresh and not self._served_until

    @property
    def idle_since(self) -> float | None:
        since = super().idle_since
        return None if since is None else max(since, self._served_until - 1.0)

    @property
    def _patient(self) -> bool:
        waits = self._under_way is not None and self._under_way.form is None
        return waits or super()._patient

    @property
    def _owes(self) -> bool:
        return self._under_way is not None or super()._owes

    def data_received(self, data: bytes) -> None:
        """Answer from the lane where that is possible, else let aiohttp do its work."""
        # An empty table would want to know the hash of what is looked up: of a whole piece of an upload.
        found = self._wires.get(data) if self._wires else None
        if found is None:
            self._dispatch(data)
            return
        wire, counter, self._served_until = found
        counter.number += 1
        if wire.__class__ is bytes:
            self.transport.write(wire)  # type: ignore[union-attr]  # data comes over a transport
        else:
            self._send(wire)  # type: ignore[arg-type]  # a long one

    def _dispatch(self, data: bytes) -> None:
        """Look what can be done with bytes, by all that is known of this connection."""
        if self._under_way is not None:
            self._buffer_input(self._under_way, data)
            return
        if (
            self._at_boundary
            and not (self._close or self._force_close)
            and not self.writing_paused  # aiohttp waits for a client that does not take its answers
        ):
            self._wires = self._lane.wires
            if (wire := self._lane.find(data)) is not None:
                self._answer(wire)
                return
            if self._write(data) or self._wait(data):
                return
        self._fall_back(data)

    def _answer(self, wire: bytes | MemFd) -> None:
        if isinstance(wire, bytes):
            self.transport.write(wire)  # type: ignore[union-attr]  # who is answered is there
        else:
            self._send(wire)
        self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout

    def _send(self, wire: MemFd) -> None:
        transport: Any = self.transport
        if self._socket is None:
            self._socket = memfd.raw_fd(transport)
        wire.send(transport, self._socket)

    def _fall_back(self, data: bytes) -> None:
        at_boundary, self._at_boundary = self._at_boundary, False
        self._wires = _NO_WIRES
        self._alone = None
        super().data_received(data)
        if (
            at_boundary
            and self._clean
            and len(self._messages) == 1
            and data.count(END) == 1
            and data[:1] not in (b"\r", b"\n")
        ):
            self._alone = data

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        offered, self.offered = self.offered, None
        waited, self.waited = self.waited, False
        self.outcome = self.limit = None
        sent, reset = await super().finish_response(request, resp, start_time)
        if self._clean and not self._messages and not reset and sent.keep_alive:
            # The task of aiohttp takes two turns of the loop until it waits again, and many a client is faster.
            self._at_boundary = True
            if offered is not None and self._alone is not None and isinstance(sent, web.Response):
                if isinstance(offered, int):
                    answers = self._lane.told if waited else self._lane
                    answers.keep(self._alone, request, sent, offered)
                else:
                    self._lane.forms.keep(self._alone, request, sent, offered)
        return sent, reset

    def _write(self, data: bytes) -> bool:
        """Begin a write that the lane can do; False if it is one for aiohttp."""
        # The longest that the first line alone may be: no limit of the parser can be met then.
        if len(data) > self.max_line_size or (found := self._lane.forms.find(data)) is None:
            return False
        form, value = found
        logging.CLIENT.set(self._client())
        if lifecycle.draining() or (withdraw := form.write(value, self._written)) is None:
            return False
        self._begin(_InFlight(data, withdraw, form))
        return True

    def _client(self) -> str | None:
        """Return the address of the client, for the log."""
        if self._peer is None and self.transport is not None:
            name = self.transport.get_extra_info("peername")
            self._peer = name[0] if isinstance(name, tuple) else "a client of the unix socket"
        return self._peer

    def _wait(self, data: bytes) -> bool:
        """Wait in a room for what these bytes ask for; False if there is none."""
        if lifecycle.draining() or (found := self._lane.rooms.find(data)) is None:
            return False
        room, request = found
        if not room.enter(self):
            return False
        self._begin(_InFlight(request, partial(room.leave, self)))
        return True

    def room_for(
        self, request: BaseRequest, make: MakeWaitlist, instead: tuple[str, str] | None
    ) -> Waitlist | None:
        """Return the room of all who ask in the words of the request under way; None if there can be none."""
        if self._alone is None:
            return None
        return self._lane.rooms.room_for(self._alone, request, make, instead)

    def _begin(self, under_way: _InFlight) -> None:
        self._under_way = under_way
        self._wires = _NO_WIRES
        self._request_in_progress = True  # as aiohttp has it while a handler runs

    def _end(self) -> None:
        self._under_way = None
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)

    def _buffer_input(self, under_way: _InFlight, data: bytes) -> None:
        """Keep what comes before its turn. It is not read on for ever: who sends is to feel that it is too early."""
        if under_way.held_back is None:
            under_way.held_back = deque()
        under_way.held_back.append(data)
        if under_way.full and self.transport is not None:
            self.transport.pause_reading()

    def _drain_input(self, under_way: _InFlight) -> None:
        """Read what was held back; close when that was all, of a client that has closed its side."""
        if under_way.full and self.transport is not None:
            self.transport.resume_reading()
        # As it came: of bytes that come at once, aiohttp answers no request if one of them is malformed.
        waiting = under_way.held_back
        while waiting:
            self.data_received(waiting.popleft())
            if (again := self._under_way) is not None:
                again.held_back = waiting
                break
        if self._half_closed and not self._owes and self.transport is not None:
            self.transport.close()

    def _written(self, outcome: Outcome) -> None:
        """Answer a write that has ended, and go on with what was held back."""
        under_way, transport = self._under_way, self.transport
        if under_way is None:
            return
        self._end()
        if transport is None or transport.is_closing() or under_way.form is None:
            _count_for_nobody(outcome)
            return
        if not (isinstance(outcome, BaseException) or lifecycle.draining()):
            self._answer(self._lane.forms.fill(under_way.form, outcome.etag))
        elif isinstance(outcome, asyncio.CancelledError):
            self.force_close()
            return
        else:
            self.outcome = outcome
            self._fall_back(under_way.request)
        self._drain_input(under_way)

    def look_again(self, limit: float) -> None:
        """Answer who has waited, as all others who did so with the same words; else let its handler look."""
        under_way = self._under_way
        if under_way is None:
            return
        self._end()
        if self.transport is None or self.transport.is_closing():
            return
        if (wire := self._lane.told.find(under_way.request)) is not None:
            self._answer(wire)
        else:
            self.limit = limit
            self._fall_back(under_way.request)
        self._drain_input(under_way)

    def connection_lost(self, exc: BaseException | None) -> None:
        under_way = self._under_way
        if under_way is not None and under_way.form is None:
            self._end()
            under_way.withdraw()  # a write goes on, whoever is there to be told of it
        super().connection_lost(exc)

    def _process_keepalive(self) -> None:
        # aiohttp knows of no request that the lane has taken, and takes the connection for an idle one.
        used = self._served_until if self._under_way is None else self._loop.time()
        self._next_keepalive_close_time = max(
            self._next_keepalive_close_time, used + self.keepalive_timeout
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

    def take(self, taker: ConnectionOwner) -> asyncio.Transport | None:
        self._wires = _NO_WIRES
        return super().take(taker)


def _count_for_nobody(outcome: Outcome) -> None:
    """Count the answer to somebody who has gone meanwhile."""
    if not isinstance(outcome, BaseException):
        fastpath.count("200")
    elif isinstance(outcome, _errors.SidecarError):
        fastpath.count(str(problems.from_error(outcome).status))
