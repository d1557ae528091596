"""The interface between handlers and the fast path. Handlers know nothing else of connections and caches.

Without a fast path (another server, another protocol class) each function does nothing, or returns None.
Nothing is cached if an application around the handler has a middleware or signal that is not from `sidecar`:
that may need to see each request.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from aiohttp import web

if TYPE_CHECKING:
    from sidecar.volume.publish.group_commit import Outcome

_CACHE_SAFE = "_sidecar_cache_safe"

WriteFunction: TypeAlias = "Callable[[bytes, Callable[[Outcome], None]], Callable[[], None] | None]"
"""Publishes a percent-encoded value of `content`; calls back once, later, with the result.

Returns a function that cancels it; None if the value cannot be published this way, and nothing was started.
"""

WAITED: web.RequestKey[bool] = web.RequestKey("sidecar.waited", bool)
"""In a request that has waited for a change: its duration says nothing of the server, and is not in the metrics."""

_M = TypeVar("_M")


class WaitingConnection(Protocol):
    """A connection on a waitlist, without a task or a handler."""

    def recheck(self, poll_deadline: float) -> None:
        """Look for a new content now; until `poll_deadline` (event loop clock) the connection may wait again."""


class Waitlist(Protocol):
    """The connections that have sent the same request for a newer content."""

    def join(self, connection: WaitingConnection) -> bool:
        """Add a connection; False if the content may be new, so that a handler must be called."""

    def leave(self, connection: WaitingConnection) -> None:
        """Remove a connection."""

    def close_if_empty(self) -> bool:
        """Close this waitlist if it is empty, and return whether it was."""


MakeWaitlist: TypeAlias = "Callable[[Callable[[], bool], Callable[[], object]], Waitlist]"
"""Makes a waitlist from two functions: one returns whether the response is cached, the other is called when it closes."""


class Cache(Protocol):
    """A cache that `invalidate_all` clears."""

    def clear(self) -> None:
        """Remove all responses."""


class _State:
    epoch = 0
    caches: ClassVar[weakref.WeakSet[Cache]] = weakref.WeakSet()


def epoch() -> int:
    """Return the epoch of the cached state. Call it before you read the data for a response."""
    return _State.epoch


def invalidate_all() -> None:
    """Clear all caches of this process: something that responses depend on has changed."""
    _State.epoch += 1
    for cache in list(_State.caches):
        cache.clear()


def register_cache(cache: Cache) -> None:
    """Clear `cache` at each `invalidate_all`, as long as it exists."""
    _State.caches.add(cache)


def mark_cacheable(request: web.Request, epoch: int, *, was_long_poll: bool = False) -> None:
    """Declare in a handler that its response depends only on the bytes of the request and on `invalidate_all`.

    With `was_long_poll` the response is only for long polls that have waited.
    `epoch` is the value of `epoch()` before the handler read the data.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "cache_hint") and all(map(_is_ours, request.match_info.apps)):
        protocol.cache_hint = epoch
        protocol.was_long_poll = was_long_poll


def mark_writable(request: web.Request, write: WriteFunction) -> None:
    """Declare in a handler that the same request with another `content` does nothing but call `write`.

    The response to a successful write depends on nothing else, and differs only in its `ETag`.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "cache_hint") and all(map(_is_ours, request.match_info.apps)):
        protocol.cache_hint = write


def coalesced_poll(
    request: web.Request, make: MakeWaitlist, replacement: tuple[str, str] | None
) -> Waitlist | None:
    """Return the waitlist for the request of this handler; None if there cannot be one.

    Only for a handler that waits for nothing but changes that also wake its waitlist.
    `replacement` is (new, old): the requests of the waitlist have `new` in place of `old`.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "find_waitlist") and all(map(_is_ours, request.match_info.apps)):
        waitlist: Waitlist | None = protocol.find_waitlist(request, make, replacement)
        return waitlist
    return None


def deadline(request: web.Request) -> float | None:
    """Return the deadline of a long poll that has already waited on a waitlist, None for others."""
    poll_deadline: float | None = getattr(request.protocol, "poll_deadline", None)
    return poll_deadline


def prior_result(request: web.Request) -> Outcome | None:
    """Return the result of a request that the fast path has already executed; None if the handler must do it."""
    prior_result: Outcome | None = getattr(request.protocol, "prior_result", None)
    return prior_result


def cache_safe(middleware: _M) -> _M:
    """Mark a middleware or signal handler that leaves a cacheable response one that depends on the bytes of its request alone."""
    setattr(middleware, _CACHE_SAFE, True)
    return middleware


def _is_ours(app: web.Application) -> bool:
    handlers: tuple[object, ...] = (*app.on_response_prepare, *app.middlewares)
    return all(getattr(one, _CACHE_SAFE, False) for one in handlers)
