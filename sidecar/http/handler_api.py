"""What handlers say to the lane, and ask of it.

Nothing is taken up, and no room found, where an application around the handler has a middleware or a signal that is not ours,
for that may want to see each request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from aiohttp import web

    from sidecar.http.server.fastpath.waitlists import MakeWaitlist, Waitlist
    from sidecar.http.server.fastpath.write_templates import WriteFunction
    from sidecar.volume.publish.group_commit import Outcome

_TRANSPARENT = "_sidecar_transparent"

_M = TypeVar("_M")


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
    setattr(middleware, _TRANSPARENT, True)
    return middleware


def _is_ours(app: web.Application) -> bool:
    return not app.on_response_prepare and all(
        getattr(middleware, _TRANSPARENT, False) for middleware in app.middlewares
    )
