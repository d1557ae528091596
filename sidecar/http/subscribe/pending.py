"""Everything that ends waiting, for all who wait in an application.

A change, the time limit, a client that has gone, a process that drains, an application that shuts down:
all of them ring the same bell.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

from aiohttp import web

from sidecar.http.semantics.bearer_auth import ADMISSION
from sidecar.http.server.protocol import ServerProtocol, drain_callbacks
from sidecar.process import lifecycle, metrics

if TYPE_CHECKING:
    from sidecar.volume.watch.watch import Watch

WAKE_BATCH: Final = 50
"""Requests that are woken before others get their turn: some milliseconds."""


class Wakeable(Protocol):
    """What is rung when waiting is over."""

    def ring(self) -> None: ...


class PendingRequests:
    """The waiting requests of one application."""

    _everywhere: ClassVar[weakref.WeakSet[PendingRequests]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.over = False
        """The application shuts down."""
        self._bells: set[Wakeable] = set()
        self._towers: dict[Watch[Any], _Broadcast] = {}
        self._everywhere.add(self)

    def __repr__(self) -> str:
        return f"<Waits waiting={len(self._bells)}{' over' if self.over else ''}>"

    @classmethod
    def wake_all(cls) -> None:
        """Wake every waiting request of this process, because it drains."""
        for waits in list(cls._everywhere):
            waits.ring()

    def bell(self, request: web.Request, watch: Watch[Any] | None) -> Waiter:
        """Return a bell that rings for this request: at each change of the watch, and when waiting is over."""
        return Waiter(self, request, watch)

    def add(self, bell: Wakeable, watch: Watch[Any] | None = None) -> None:
        """Ring this one, too; at each change of the watch as well, if there is one."""
        self._bells.add(bell)
        if watch is not None:
            tower = self._towers.get(watch)
            if tower is None:
                tower = self._towers[watch] = _Broadcast(watch)
            tower.bells[bell] = None

    def discard(self, bell: Wakeable, watch: Watch[Any] | None = None) -> None:
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


class _Broadcast:
    """The bells that ring at each change of one watch: a few, and when those have been answered, the next few.

    Thousands that all wake at once would be answered before anybody else, a probe for example, has a turn.
    """

    def __init__(self, watch: Watch[Any]) -> None:
        self.bells: dict[Wakeable, None] = {}
        self._left: dict[Wakeable, None] = {}
        self._next: asyncio.Handle | None = None
        self._unsubscribe = watch.subscribe(self._changed)

    def discard(self, bell: Wakeable) -> None:
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
        for bell in list(islice(self._left, WAKE_BATCH)):
            del self._left[bell]
            bell.ring()
        loop = asyncio.get_running_loop()
        self._next = loop.call_soon(self._ring_some) if self._left else None


class Waiter:
    """Rings when it is worth to look again, for one request, inside of its `with` block.

    There can be ten thousand of them: so it is one object, with one more and a timer while it waits.
    """

    __slots__ = ("_end_callback", "_request", "_rung", "_waits", "_wake", "_watch")

    def __init__(
        self, waits: PendingRequests, request: web.Request, watch: Watch[Any] | None
    ) -> None:
        self._waits = waits
        self._request = request
        self._watch = watch
        self._rung = False
        self._wake: asyncio.Future[None] | None = None
        self._end_callback: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._waits.add(self, self._watch)
        if isinstance(self._request.protocol, ServerProtocol):
            self._request.protocol.add_disconnect_callback(self.ring, patient=True)
        if (admission := self._request.get(ADMISSION)) is not None:
            self._end_callback = admission.on_revoked(self.ring)
        metrics.SUBSCRIBERS.inc()
        return self

    def __exit__(self, *_: object) -> None:
        metrics.SUBSCRIBERS.dec()
        if isinstance(self._request.protocol, ServerProtocol):
            self._request.protocol.remove_disconnect_callback(self.ring)
        if self._end_callback is not None:
            self._end_callback()
        self._waits.discard(self, self._watch)

    @property
    def over(self) -> bool:
        """Whether waiting has no point any more."""
        admission = self._request.get(ADMISSION)
        return (
            self._waits.over
            or lifecycle.draining()
            or self._request.transport is None
            or (admission is not None and admission.revoked)
        )

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


PENDING: web.AppKey[PendingRequests] = web.AppKey("sidecar.waits", PendingRequests)

drain_callbacks.append(PendingRequests.wake_all)
