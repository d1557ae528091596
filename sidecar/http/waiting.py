"""Requests that wait for the next version, and everything that ends their waiting.

A change, the time limit, a client that has gone, a process that drains, an application that shuts down:
all of them ring the same bell. Those who ask in the same words wait in one room, without a handler each (`http/lane`).
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

from aiohttp import web

from sidecar import _errors
from sidecar.http import answers, lane, problems
from sidecar.http.answers import WAIT_LIMIT, Representation, Tags
from sidecar.http.connection import Connection
from sidecar.runtime import metrics, running

if TYPE_CHECKING:
    from sidecar.volume.watch import Watch


_SLICE: Final = 50
"""Requests that are woken before others get their turn: some milliseconds."""

_TOLD: Final = 200
"""Requests that get an answer that is known before others get their turn: a millisecond or two."""
_SCOUTS: Final = 2
"""Requests that are answered by their handlers before all others are called: an answer is known from the second on."""
_PATIENCE: Final = 10
"""Turns of the event loop in which the answer should be known; after them the others ask their handlers, too."""

Make = Callable[[], Awaitable[Representation]]


def prepare(app: web.Application) -> None:
    """Let requests of this application wait, at the longest until it shuts down, whoever runs it."""
    waits = app[WAITS] = Waits()
    app.on_shutdown.append(waits.shut_down)


async def answer(
    request: web.Request,
    watch: Watch[Any],
    make: Make,
    *,
    recheck: float = WAIT_LIMIT,
    in_memory: Callable[[], bool] = lambda: False,
) -> web.Response:
    """Answer a GET or HEAD with what `make` returns; with `Prefer: wait=SECONDS`, once it is something new.

    New is what the request's `If-None-Match` does not name, and any content where there was none.
    `recheck` is the number of seconds between looks for changes of which the watch does not tell.
    `in_memory` says whether there are none: then the answer can be remembered for the same request.
    """
    seconds = answers.wait_of(request)
    known = answers.if_none_match(request)
    generation = lane.generation()
    found = await _attempt(make)
    waited = lane.limit_of(request) is not None
    if seconds is not None and _is_old(found, known):
        waited = True
        loop = asyncio.get_running_loop()
        limit = lane.limit_of(request) or loop.time() + seconds
        waits = request.app[WAITS]
        with waits.bell(request, watch) as bell:
            generation = lane.generation()
            found = await _attempt(make)
            while _is_old(found, known) and not bell.over and (left := limit - loop.time()) > 0:
                if in_memory() and generation == lane.generation():
                    waits.open_room(request, watch, seconds)
                await bell.wait(min(left, recheck))
                generation = lane.generation()
                found = await _attempt(make)
    applied = answers.wait_applied(seconds) if seconds is not None and waited else {}
    if isinstance(found, problems.Problem):
        found.headers.update(applied)
        raise found
    response = answers.respond(request, found)
    response.headers.update(applied)
    # The answer to who has waited in vain is not the one to who asks.
    at_once = seconds is None or not _is_old(found, known)
    # A date that is still to come is sent as the present one, so it would be another each time.
    if at_once and (found.modified or 0.0) <= time.time() and in_memory():
        lane.offer(request, generation, waited=waited)
        if seconds and known is not None and generation == lane.generation():
            request.app[WAITS].expect(request, watch, seconds, known, found.etag)
    return response


class Rings(Protocol):
    """What is rung when waiting is over."""

    def ring(self) -> None: ...


class Waits:
    """The waiting requests of one application."""

    _everywhere: ClassVar[weakref.WeakSet[Waits]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.over = False
        """The application shuts down."""
        self._bells: set[Rings] = set()
        self._towers: dict[Watch[Any], _Tower] = {}
        self._everywhere.add(self)

    def __repr__(self) -> str:
        return f"<Waits waiting={len(self._bells)}{' over' if self.over else ''}>"

    @classmethod
    def end_all(cls) -> None:
        """Wake every waiting request of this process, because it drains."""
        for waits in list(cls._everywhere):
            waits.ring()

    def bell(self, request: web.Request, watch: Watch[Any] | None) -> Bell:
        """Return a bell that rings for this request: at each change of the watch, and when waiting is over."""
        return Bell(self, request, watch)

    def open_room(
        self,
        request: web.Request,
        watch: Watch[Any],
        seconds: float,
        instead: tuple[str, str] | None = None,
    ) -> None:
        """Let others who ask in the same words wait without a handler: what is there now is not new to them.

        `instead` is what stands in their words, and what stands in the place of it in this request.
        """

        def make(is_known: Callable[[], bool], closed: Callable[[], object]) -> Room:
            return Room(self, watch, seconds, is_known, closed)

        room = lane.room_for(request, make, instead)
        if isinstance(room, Room):
            room.open()

    def expect(
        self, request: web.Request, watch: Watch[Any], seconds: float, known: Tags, etag: str
    ) -> None:
        """Open a room for those who are told of `etag` now, and will all ask for something newer than that."""
        if len(known.tags) == 1:
            self.open_room(request, watch, seconds, (etag, known.tags[0]))

    def add(self, bell: Rings, watch: Watch[Any] | None = None) -> None:
        """Ring this one, too; at each change of the watch as well, if there is one."""
        self._bells.add(bell)
        if watch is not None:
            tower = self._towers.get(watch)
            if tower is None:
                tower = self._towers[watch] = _Tower(watch)
            tower.bells[bell] = None

    def discard(self, bell: Rings, watch: Watch[Any] | None = None) -> None:
        """Do so no longer."""
        self._bells.discard(bell)
        if watch is not None and (tower := self._towers.get(watch)) is not None:
            tower.discard(bell)
            if not tower.bells:
                tower.close()
                del self._towers[watch]

    def ring(self) -> None:
        """Let every waiting request look again."""
        for bell in list(self._bells):
            bell.ring()

    async def shut_down(self, _: web.Application) -> None:
        """Answer every waiting request now: for `on_shutdown`."""
        self.over = True
        self.ring()


class _Tower:
    """The bells that ring at each change of one watch: a few, and when those have been answered, the next few.

    Thousands that all wake at once would be answered before anybody else, a probe for example, has a turn.
    """

    def __init__(self, watch: Watch[Any]) -> None:
        self.bells: dict[Rings, None] = {}
        self._left: dict[Rings, None] = {}
        self._next: asyncio.Handle | None = None
        self._unsubscribe = watch.subscribe(self._changed)

    def discard(self, bell: Rings) -> None:
        self.bells.pop(bell, None)
        self._left.pop(bell, None)

    def close(self) -> None:
        self._unsubscribe()
        if self._next is not None:
            self._next.cancel()

    def _changed(self) -> None:
        self._left.update(self.bells)
        if self._next is None:
            self._ring_some()

    def _ring_some(self) -> None:
        for bell in list(islice(self._left, _SLICE)):
            del self._left[bell]
            bell.ring()
        loop = asyncio.get_running_loop()
        self._next = loop.call_soon(self._ring_some) if self._left else None


class Bell:
    """Rings when it is worth to look again, for one request, inside of its `with` block.

    There can be ten thousand of them: so it is one object, with one more and a timer while it waits.
    """

    __slots__ = ("_request", "_rung", "_waits", "_wake", "_watch")

    def __init__(self, waits: Waits, request: web.Request, watch: Watch[Any] | None) -> None:
        self._waits = waits
        self._request = request
        self._watch = watch
        self._rung = False
        self._wake: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._waits.add(self, self._watch)
        if isinstance(self._request.protocol, Connection):
            self._request.protocol.on_lost(self.ring, patient=True)
        metrics.SUBSCRIBERS.inc()
        return self

    def __exit__(self, *_: object) -> None:
        metrics.SUBSCRIBERS.dec()
        if isinstance(self._request.protocol, Connection):
            self._request.protocol.off_lost(self.ring)
        self._waits.discard(self, self._watch)

    @property
    def over(self) -> bool:
        """Whether waiting has no point any more."""
        return self._waits.over or running.draining() or self._request.transport is None

    def ring(self) -> None:
        self._rung = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def wait(self, timeout: float) -> None:
        """Return when the bell has been rung, at the latest after `timeout` seconds."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            self._wake = loop.create_future()
            limit = loop.call_later(timeout, self.ring)
            try:
                await self._wake
            finally:
                limit.cancel()
                self._wake = None
        self._rung = False


class Room:
    """Those who have asked in the same words for something newer: each is an entry here, and nothing else.

    It is told of what their handlers are told of. As soon as one of those has answered, all get the same bytes.
    """

    def __init__(
        self,
        waits: Waits,
        watch: Watch[Any],
        seconds: float,
        is_known: Callable[[], bool],
        closed: Callable[[], object],
    ) -> None:
        self._waits = waits
        self._watch = watch
        self._seconds = seconds
        self._is_known = is_known
        self._closed = closed
        self._guests: dict[lane.Guest, float] = {}
        """Those who wait, and until when; since all do so for the same time, in the order in which they came."""
        self._open = True
        self._turns = 0
        """How often some were called since it was rung."""
        self._next: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        waits.add(self, watch)

    def __repr__(self) -> str:
        return f"<Room guests={len(self._guests)}{' open' if self._open else ''}>"

    def open(self) -> None:
        """Say that what is there now is not new: who is here stays."""
        self._open = True

    def enter(self, guest: lane.Guest) -> bool:
        if not self._open:
            return False
        loop = asyncio.get_running_loop()
        limit = self._guests[guest] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(limit, self._sweep)
        metrics.SUBSCRIBERS.inc()
        return True

    def leave(self, guest: lane.Guest) -> None:
        if self._guests.pop(guest, None) is not None:
            metrics.SUBSCRIBERS.dec()

    def close_if_empty(self) -> bool:
        if not self._guests:
            self._close()
        return not self._guests

    def ring(self) -> None:
        self._open = False
        if self._next is None:
            self._turns = 0
            self._call_some()

    def _call_some(self) -> None:
        """Let some look again, until all have, or one of them says that there is nothing new."""
        self._next = None
        if self._open:
            return
        self._call(islice(self._guests, self._how_many()))
        self._turns += 1
        if self._guests:
            self._next = asyncio.get_running_loop().call_soon(self._call_some)
        else:
            self._close()

    def _how_many(self) -> int:
        """Return how many may be called now: a few until the answer is known that the others get."""
        if self._is_known():
            return _TOLD
        if self._turns == 0:
            return _SCOUTS
        return 0 if self._turns < _PATIENCE else _SLICE

    def _call(self, guests: Iterable[lane.Guest]) -> None:
        for guest in list(guests):
            limit = self._guests[guest]
            self.leave(guest)
            guest.look_again(limit)

    def _sweep(self) -> None:
        """Let those answer whose time is over."""
        self._timer = None
        loop = asyncio.get_running_loop()
        late = takewhile(lambda one: self._guests[one] <= loop.time() + 0.001, self._guests)
        self._call(islice(late, _SLICE))
        if self._guests:
            self._timer = loop.call_at(next(iter(self._guests.values())), self._sweep)

    def _close(self) -> None:
        self._open = False
        for planned in (self._next, self._timer):
            if planned is not None:
                planned.cancel()
        self._next = self._timer = None
        self._waits.discard(self, self._watch)
        self._closed()


async def _attempt(make: Make) -> Representation | problems.Problem:
    """Return what there is; that there is nothing yet is a result as well, for something may come."""
    try:
        return await make()
    except _errors.ContentAltered as error:
        return problems.of(error)
    except problems.Problem as problem:
        if problem.kind != "nothing-published":
            raise
        return problem


def _is_old(found: Representation | problems.Problem, known: Tags | None) -> bool:
    if isinstance(found, problems.Problem) or (known is not None and known.match(found.etag)):
        return True
    try:
        found.check()
    except _errors.ContentAltered:
        return True  # it cannot be sent, and another one will come
    return False


WAITS: web.AppKey[Waits] = web.AppKey("sidecar.waits", Waits)
