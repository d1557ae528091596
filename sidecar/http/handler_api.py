"""What a handler tells the fast path, and asks of it. Handlers know nothing else of connections and caches.

Without a fast path (another server, another protocol class) each function does nothing, or returns None.
Nothing is cached where an application around the handler has a middleware or a signal that is not ours,
for that may want to see each request.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from aiohttp import web

    from sidecar.volume.publish.group_commit import Outcome

_CACHE_SAFE = "_sidecar_cache_safe"

WriteFunction: TypeAlias = "Callable[[bytes, Callable[[Outcome], None]], Callable[[], None] | None]"
"""Publishes the value of `content` as it stands in an address; the callback gets the outcome, once, later.

Returns what cancels it; None if it cannot be done in this way, and nothing has begun."""

_M = TypeVar("_M")


class WaitingConnection(Protocol):
    """A connection that waits in a list, without a task or a handler."""

    def look_again(self, limit: float) -> None:
        """Something may have changed, or `limit` is over: until then, by the clock of the loop, it may wait."""


class Waitlist(Protocol):
    """The connections that have sent the same request for something newer than they have."""

    def enter(self, guest: WaitingConnection) -> bool:
        """Wait from now on; False if what is there now may be new, so that aiohttp must be asked."""

    def leave(self, guest: WaitingConnection) -> None:
        """Wait no longer."""

    def close_if_empty(self) -> bool:
        """Give the place to another list, if nobody waits in this one."""


MakeWaitlist: TypeAlias = "Callable[[Callable[[], bool], Callable[[], object]], Waitlist]"
"""Makes a list, told how to see whether the answer to that request is cached, and what to call when it closes."""


class Cache(Protocol):
    """What `invalidate_all` empties."""

    def clear(self) -> None:
        """Forget every answer."""


class _State:
    epoch = 0
    caches: ClassVar[weakref.WeakSet[Cache]] = weakref.WeakSet()


def epoch() -> int:
    """Return the number of the present state of all contents: call it before you look at what is answered with."""
    return _State.epoch


def invalidate_all() -> None:
    """Forget every cached answer of this process: something that they depend on has changed."""
    _State.epoch += 1
    for cache in list(_State.caches):
        cache.clear()


def register_cache(cache: Cache) -> None:
    """Empty `cache` at each `invalidate_all`, for as long as it exists."""
    _State.caches.add(cache)


def mark_cacheable(request: web.Request, generation: int, *, waited: bool = False) -> None:
    """Say, in a handler, that its answer depends on nothing but the request's bytes and what `forget` is called for.

    Or on whether it had `waited` besides: then it is the answer to those who have waited in a room.
    `generation` is that of before the handler looked at what it answers with.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "offered") and all(map(_is_ours, request.match_info.apps)):
        protocol.offered = generation
        protocol.waited = waited


def mark_writable(request: web.Request, write: WriteFunction) -> None:
    """Say, in a handler, that another value of `content` in this request would do nothing but `write` it.

    The answer to a write that ends well depends on nothing else, and differs in its `ETag` alone.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "offered") and all(map(_is_ours, request.match_info.apps)):
        protocol.offered = write


def coalesced_poll(
    request: web.Request, make: MakeWaitlist, instead: tuple[str, str] | None
) -> Waitlist | None:
    """Return, in a handler, the room of all who wait and ask in the same words; None if there can be none.

    It is for a handler that would look again at nothing but a change that its room is told of, too.
    `instead` is the one word that is another in theirs, and that in the place of which it stands.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "room_for") and all(map(_is_ours, request.match_info.apps)):
        room: Waitlist | None = protocol.room_for(request, make, instead)
        return room
    return None


def deadline(request: web.Request) -> float | None:
    """Return, in a handler, until when this very request may wait, because it has waited elsewhere already."""
    limit: float | None = getattr(request.protocol, "limit", None)
    return limit


def prior_result(request: web.Request) -> Outcome | None:
    """Return, in a handler, what became of this very request already; None: it is for the handler to do it."""
    outcome: Outcome | None = getattr(request.protocol, "outcome", None)
    return outcome


def cache_safe(middleware: _M) -> _M:
    """Mark a middleware that does nothing to an answer that a handler has offered."""
    setattr(middleware, _CACHE_SAFE, True)
    return middleware


def _is_ours(app: web.Application) -> bool:
    return not app.on_response_prepare and all(
        getattr(middleware, _CACHE_SAFE, False) for middleware in app.middlewares
    )
