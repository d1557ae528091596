"""Requests that wait for the next version, and everything that ends their waiting.

A change, the time limit, a client that has gone, a process that drains, an application that shuts down:
all of them ring the same bell, so a waiting request costs a few objects, and no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ClassVar

from aiohttp import web

from sidecar.http.connection import Connection
from sidecar.runtime import metrics, running

if TYPE_CHECKING:
    from sidecar.volume.watch import Watch


class Waits:
    """The waiting requests of one application."""

    _everywhere: ClassVar[weakref.WeakSet[Waits]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._over = False
        self._bells: set[Bell] = set()
        self._everywhere.add(self)

    def __repr__(self) -> str:
        return f"<Waits waiting={len(self._bells)}{' over' if self._over else ''}>"

    @classmethod
    def end_all(cls) -> None:
        """Wake every waiting request of this process, because it drains."""
        for waits in list(cls._everywhere):
            waits.ring()

    def attach(self, app: web.Application) -> None:
        """End the waiting when this application shuts down, whoever runs it."""
        app[WAITS] = self
        app.on_shutdown.append(self._shut_down)

    @contextmanager
    def bell(self, request: web.Request, watch: Watch[object]) -> Iterator[Bell]:
        """Yield a bell that rings for this request: at each change of the watch, and at the end."""
        bell = Bell(lambda: self._over or running.draining() or request.transport is None)
        with ExitStack() as stack:
            stack.callback(watch.subscribe(bell.ring))
            if isinstance(request.protocol, Connection):
                stack.callback(request.protocol.on_lost(bell.ring))
            self._bells.add(bell)
            stack.callback(self._bells.discard, bell)
            with metrics.SUBSCRIBERS.track_inprogress():
                yield bell

    def ring(self) -> None:
        """Let every waiting request look again."""
        for bell in list(self._bells):
            bell.ring()

    async def _shut_down(self, _: web.Application) -> None:
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


WAITS: web.AppKey[Waits] = web.AppKey("sidecar.waits", Waits)
