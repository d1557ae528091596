"""Requests that wait for the next version, and everything that ends their waiting.

A change, the time limit, a client that has gone, a process that drains, an application that shuts down:
all of them ring the same bell, so a waiting request costs a few objects, and no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable
from itertools import islice
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
    if seconds is not None and _is_old(found, known):
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        with request.app[WAITS].bell(request, watch) as bell:
            found = await _attempt(make)
            while _is_old(found, known) and not bell.over and (left := limit - loop.time()) > 0:
                await bell.wait(min(left, recheck))
                found = await _attempt(make)
        applied = answers.wait_applied(seconds)
    else:
        applied = {}
    if isinstance(found, problems.Problem):
        found.headers.update(applied)
        raise found
    response = answers.respond(request, found)
    response.headers.update(applied)
    # A date that is still to come is sent as the present one, so it would be another each time.
    if seconds is None and found.modified <= time.time() and in_memory():
        lane.offer(request, generation)
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
            self._request.protocol.on_lost(self.ring)
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
