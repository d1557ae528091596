"""The registry of waiting requests, and everything that wakes them.

A change, the timeout, a disconnect, the drain of the process and the shutdown of the application
all call the same method, `wake`.
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
"""Requests that are woken per iteration of the event loop: some milliseconds."""


class Wakeable(Protocol):
    """Something that waits for a change or the end of waiting."""

    def wake(self) -> None: ...


class PendingRequests:
    """The waiting requests of one application."""

    _instances: ClassVar[weakref.WeakSet[PendingRequests]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.closed = False
        """The application is shutting down."""
        self._wakeables: set[Wakeable] = set()
        self._broadcasts: dict[Watch[Any], _Broadcast] = {}
        self._instances.add(self)

    def __repr__(self) -> str:
        return f"<PendingRequests waiting={len(self._wakeables)}{' closed' if self.closed else ''}>"

    @classmethod
    def wake_all(cls) -> None:
        """Wake every waiting request of this process, because it drains."""
        for pending in list(cls._instances):
            pending.wake()

    def waiter(self, request: web.Request, watch: Watch[Any] | None) -> Waiter:
        """Return a waiter for this request: it wakes at each change of the watch, and when waiting has ended."""
        return Waiter(self, request, watch)

    def add(self, waiter: Wakeable, watch: Watch[Any] | None = None) -> None:
        """Register a waiter, also for changes of `watch` if given."""
        self._wakeables.add(waiter)
        if watch is not None:
            broadcast = self._broadcasts.get(watch)
            if broadcast is None:
                broadcast = self._broadcasts[watch] = _Broadcast(watch)
            broadcast.waiters[waiter] = None

    def discard(self, waiter: Wakeable, watch: Watch[Any] | None = None) -> None:
        """Remove a waiter."""
        self._wakeables.discard(waiter)
        if watch is not None and (broadcast := self._broadcasts.get(watch)) is not None:
            broadcast.discard(waiter)
            if not broadcast.waiters:
                broadcast.close()
                del self._broadcasts[watch]

    def wake(self) -> None:
        """Wake every waiting request."""
        for waiter in list(self._wakeables):
            waiter.wake()

    async def shut_down(self, _: web.Application) -> None:
        """Make every waiting request respond now: for `on_shutdown`."""
        self.closed = True
        self.wake()


class _Broadcast:
    """The waiters of one watch; at a change it wakes them in batches.

    Thousands of requests woken at once would delay all others, probes for example.
    """

    def __init__(self, watch: Watch[Any]) -> None:
        self.waiters: dict[Wakeable, None] = {}
        self._remaining: dict[Wakeable, None] = {}
        self._next: asyncio.Handle | None = None
        self._unsubscribe = watch.subscribe(self._changed)

    def discard(self, waiter: Wakeable) -> None:
        self.waiters.pop(waiter, None)
        self._remaining.pop(waiter, None)

    def close(self) -> None:
        self._unsubscribe()
        if self._next is not None:
            self._next.cancel()

    def _changed(self) -> None:
        self._remaining.update(self.waiters)
        if self._next is None:
            self._wake_batch()

    def _wake_batch(self) -> None:
        for waiter in list(islice(self._remaining, WAKE_BATCH)):
            del self._remaining[waiter]
            waiter.wake()
        loop = asyncio.get_running_loop()
        self._next = loop.call_soon(self._wake_batch) if self._remaining else None


class Waiter:
    """Wakes one request inside its `with` block.

    There may be ten thousand of them, so it is one object, plus a future and a timer while it waits.
    """

    __slots__ = ("_end_callback", "_pending", "_request", "_wake", "_watch", "_woken")

    def __init__(
        self, pending: PendingRequests, request: web.Request, watch: Watch[Any] | None
    ) -> None:
        self._pending = pending
        self._request = request
        self._watch = watch
        self._woken = False
        self._wake: asyncio.Future[None] | None = None
        self._end_callback: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._pending.add(self, self._watch)
        if isinstance(self._request.protocol, ServerProtocol):
            self._request.protocol.add_disconnect_callback(self.wake, waits_long=True)
        if (admission := self._request.get(ADMISSION)) is not None:
            self._end_callback = admission.on_revoked(self.wake)
        metrics.SUBSCRIBERS.inc()
        return self

    def __exit__(self, *_: object) -> None:
        metrics.SUBSCRIBERS.dec()
        if isinstance(self._request.protocol, ServerProtocol):
            self._request.protocol.remove_disconnect_callback(self.wake)
        if self._end_callback is not None:
            self._end_callback()
        self._pending.discard(self, self._watch)

    @property
    def closed(self) -> bool:
        """Whether waiting has ended for good: shutdown, drain, disconnect or a revoked token."""
        admission = self._request.get(ADMISSION)
        return (
            self._pending.closed
            or lifecycle.draining()
            or self._request.transport is None
            or (admission is not None and admission.revoked)
        )

    def wake(self) -> None:
        self._woken = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def wait(self, timeout: float) -> None:
        """Return when woken, or after `timeout` seconds."""
        if not self._woken:
            loop = asyncio.get_running_loop()
            self._wake = loop.create_future()
            limit = loop.call_later(timeout, self.wake)
            try:
                await self._wake
            finally:
                limit.cancel()
                self._wake = None
        self._woken = False


PENDING: web.AppKey[PendingRequests] = web.AppKey("sidecar.pending", PendingRequests)

drain_callbacks.append(PendingRequests.wake_all)
