"""Those who have asked in the same words for something newer: they wait in one room, without a handler each.

The lane knows which words lead to it (`http/server/fastpath/waitlists`); who opens it, and when its guests are called, is said here.
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

_TOLD: Final = 200
"""Requests that get an answer that is known before others get their turn: a millisecond or two."""
_SCOUTS: Final = 2
"""Requests that are answered by their handlers before all others are called: an answer is known from the second on."""
_PATIENCE: Final = 10
"""Turns of the event loop in which the answer should be known; after them the others ask their handlers, too."""


def coalesce(
    request: web.Request,
    watch: Watch[Any],
    seconds: float,
    instead: tuple[str, str] | None = None,
) -> None:
    """Let others who ask in the same words wait without a handler: what is there now is not new to them.

    `instead` is what stands in their words, and what stands in the place of it in this request.
    """

    def make(is_known: Callable[[], bool], closed: Callable[[], object]) -> CoalescedPoll:
        return CoalescedPoll(request.app[PENDING], watch, seconds, is_known, closed)

    room = handler_api.coalesced_poll(request, make, instead)
    if isinstance(room, CoalescedPoll):
        room.open()


def coalesce_next(
    request: web.Request, watch: Watch[Any], seconds: float, known: EntityTags, etag: str
) -> None:
    """Open a room for those who are told of `etag` now, and will all ask for something newer than that."""
    if len(known.tags) == 1:
        coalesce(request, watch, seconds, (etag, known.tags[0]))


class CoalescedPoll:
    """Those who have asked in the same words for something newer: each is an entry here, and nothing else.

    It is told of what their handlers are told of. As soon as one of those has answered, all get the same bytes.
    """

    def __init__(
        self,
        waits: PendingRequests,
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
        self._guests: dict[handler_api.WaitingConnection, float] = {}
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

    def enter(self, guest: handler_api.WaitingConnection) -> bool:
        if not self._open:
            return False
        loop = asyncio.get_running_loop()
        limit = self._guests[guest] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(limit, self._sweep)
        metrics.SUBSCRIBERS.inc()
        return True

    def leave(self, guest: handler_api.WaitingConnection) -> None:
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
        return 0 if self._turns < _PATIENCE else WAKE_BATCH

    def _call(self, guests: Iterable[handler_api.WaitingConnection]) -> None:
        for guest in list(guests):
            limit = self._guests[guest]
            self.leave(guest)
            guest.look_again(limit)

    def _sweep(self) -> None:
        """Let those answer whose time is over."""
        self._timer = None
        loop = asyncio.get_running_loop()
        late = takewhile(lambda one: self._guests[one] <= loop.time() + 0.001, self._guests)
        self._call(islice(late, WAKE_BATCH))
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
