"""Requests that wait for the next version, and everything that ends their waiting.

A change, the time limit, a client that has gone, a process that drains, an application that shuts down:
all of them ring the same bell, so a waiting request costs a few objects, and no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from aiohttp import web

from sidecar.http import answers, lane, problems
from sidecar.http.answers import WAIT_LIMIT, Representation, Tags
from sidecar.http.connection import Connection
from sidecar.runtime import metrics, running

if TYPE_CHECKING:
    from sidecar.volume.watch import Watch


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
        self._over = False
        self._bells: set[Rings] = set()
        self._everywhere.add(self)

    def __repr__(self) -> str:
        return f"<Waits waiting={len(self._bells)}{' over' if self._over else ''}>"

    @classmethod
    def end_all(cls) -> None:
        """Wake every waiting request of this process, because it drains."""
        for waits in list(cls._everywhere):
            waits.ring()

    @contextmanager
    def bell(self, request: web.Request, watch: Watch[Any] | None) -> Iterator[Bell]:
        """Yield a bell that rings for this request: at each change of the watch, and when waiting is over."""
        bell = Bell(lambda: self._over or running.draining() or request.transport is None)
        with ExitStack() as stack:
            if watch is not None:
                stack.callback(watch.subscribe(bell.ring))
            if isinstance(request.protocol, Connection):
                stack.callback(request.protocol.on_lost(bell.ring))
            self.add(bell)
            stack.callback(self.discard, bell)
            with metrics.SUBSCRIBERS.track_inprogress():
                yield bell

    def add(self, bell: Rings) -> None:
        """Ring this one, too."""
        self._bells.add(bell)

    def discard(self, bell: Rings) -> None:
        """Do so no longer."""
        self._bells.discard(bell)

    def ring(self) -> None:
        """Let every waiting request look again."""
        for bell in list(self._bells):
            bell.ring()

    async def shut_down(self, _: web.Application) -> None:
        """Answer every waiting request now: for `on_shutdown`."""
        self._over = True
        self.ring()


class Bell:
    """Rings when it is worth to look again."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over
        self._rung = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether waiting has no point any more."""
        return self._over()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, timeout: float) -> None:
        """Return when the bell has been rung, at the latest after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._rung.wait()
        self._rung.clear()


async def _attempt(make: Make) -> Representation | problems.Problem:
    """Return what there is; that there is nothing yet is a result as well, for something may come."""
    try:
        return await make()
    except problems.Problem as problem:
        if problem.kind != "nothing-published":
            raise
        return problem


def _is_old(found: Representation | problems.Problem, known: Tags | None) -> bool:
    if isinstance(found, problems.Problem):
        return True
    return known is not None and known.match(found.etag)


WAITS: web.AppKey[Waits] = web.AppKey("sidecar.waits", Waits)
