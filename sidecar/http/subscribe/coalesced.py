"""Coalesced long polls: equal requests for a newer content share one waitlist, without a handler each.

`http/server/fastpath/waitlists` maps requests to waitlists. This module creates them and wakes their connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from sidecar.http import handler_api
from sidecar.http.semantics.representation import EntityTags
from sidecar.http.subscribe.pending import PENDING, WAKE_BATCH, PendingRequests
from sidecar.process import metrics

if TYPE_CHECKING:
    from sidecar.volume.watch.watch import Watch

_KNOWN_RESPONSE_BATCH: Final = 200
"""Connections that get a cached response per iteration of the event loop: a millisecond or two."""
_FIRST_BATCH: Final = 2
"""Requests whose handlers run first: from the second one on the response is cached."""
_MAX_WAIT_TURNS: Final = 10
"""Iterations of the event loop to wait for a cached response; after them the other requests call their handlers, too."""


def coalesce(
    request: web.Request,
    watch: Watch[Any],
    seconds: float,
    replacement: tuple[str, str] | None = None,
) -> None:
    """Let equal requests wait without a handler: the present content is not new to them.

    `replacement` is (new, old): the other requests have `new` in place of `old`.
    """

    def make(is_response_cached: Callable[[], bool], closed: Callable[[], object]) -> CoalescedPoll:
        return CoalescedPoll(request.app[PENDING], watch, seconds, is_response_cached, closed)

    waitlist = handler_api.coalesced_poll(request, make, replacement)
    if isinstance(waitlist, CoalescedPoll):
        waitlist.open()


def coalesce_next(
    request: web.Request, watch: Watch[Any], seconds: float, known: EntityTags, etag: str
) -> None:
    """Create the waitlist for the requests that the clients answered with `etag` will send next."""
    if len(known.tags) == 1:
        coalesce(request, watch, seconds, (etag, known.tags[0]))


class CoalescedPoll:
    """The waitlist of equal long polls: each is one dict entry.

    It is woken by the same changes as the handlers. As soon as one handler has responded, all connections get the same bytes.
    """

    def __init__(
        self,
        pending: PendingRequests,
        watch: Watch[Any],
        seconds: float,
        is_response_cached: Callable[[], bool],
        closed: Callable[[], object],
    ) -> None:
        self._pending = pending
        self._watch = watch
        self._seconds = seconds
        self._is_response_cached = is_response_cached
        self._closed = closed
        self._connections: dict[handler_api.WaitingConnection, float] = {}
        """Connections and their deadlines. All wait for the same time, so the dict is in order of deadline."""
        self._open = True
        self._turns = 0
        """Batches since the last wake-up."""
        self._next: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        pending.add(self, watch)

    def __repr__(self) -> str:
        return (
            f"<CoalescedPoll connections={len(self._connections)}{' open' if self._open else ''}>"
        )

    def open(self) -> None:
        """Let connections join and stay: the present content is not new to them."""
        self._open = True

    def join(self, connection: handler_api.WaitingConnection) -> bool:
        if not self._open:
            return False
        loop = asyncio.get_running_loop()
        deadline = self._connections[connection] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._sweep)
        metrics.SUBSCRIBERS.inc()
        return True

    def leave(self, connection: handler_api.WaitingConnection) -> None:
        if self._connections.pop(connection, None) is not None:
            metrics.SUBSCRIBERS.dec()

    def close_if_empty(self) -> bool:
        if not self._connections:
            self._close()
        return not self._connections

    def wake(self) -> None:
        self._open = False
        if self._next is None:
            self._turns = 0
            self._recheck_batch()

    def _recheck_batch(self) -> None:
        """Recheck a batch of connections, until none is left or a handler reports that nothing is new."""
        self._next = None
        if self._open:
            return
        self._recheck(islice(self._connections, self._batch_size()))
        self._turns += 1
        if self._connections:
            self._next = asyncio.get_running_loop().call_soon(self._recheck_batch)
        else:
            self._close()

    def _batch_size(self) -> int:
        """Return the size of the next batch: a few until the response is cached."""
        if self._is_response_cached():
            return _KNOWN_RESPONSE_BATCH
        if self._turns == 0:
            return _FIRST_BATCH
        return 0 if self._turns < _MAX_WAIT_TURNS else WAKE_BATCH

    def _recheck(self, connections: Iterable[handler_api.WaitingConnection]) -> None:
        for connection in list(connections):
            deadline = self._connections[connection]
            self.leave(connection)
            connection.recheck(deadline)

    def _sweep(self) -> None:
        """Recheck connections whose deadline has passed."""
        self._timer = None
        loop = asyncio.get_running_loop()
        late = takewhile(
            lambda one: self._connections[one] <= loop.time() + 0.001, self._connections
        )
        self._recheck(islice(late, WAKE_BATCH))
        if self._connections:
            self._timer = loop.call_at(next(iter(self._connections.values())), self._sweep)

    def _close(self) -> None:
        self._open = False
        for handle in (self._next, self._timer):
            if handle is not None:
                handle.cancel()
        self._next = self._timer = None
        self._pending.discard(self, self._watch)
        self._closed()
