"""Long polls: requests that wait for a newer content."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sidecar import _errors
from sidecar.http import handler_api, problems
from sidecar.http.semantics import bearer_auth, representation
from sidecar.http.semantics.representation import WAIT_LIMIT, EntityTags, Representation
from sidecar.http.subscribe import coalesced
from sidecar.http.subscribe.pending import PENDING, PendingRequests

if TYPE_CHECKING:
    from sidecar.volume.watch.watch import Watch

MakeRepresentation = Callable[[], Awaitable[Representation]]


def setup(app: web.Application) -> None:
    """Enable long polls in an application; at its shutdown all of them are answered."""
    pending = app[PENDING] = PendingRequests()
    app.on_shutdown.append(pending.shut_down)


async def respond(
    request: web.Request,
    watch: Watch[Any],
    make: MakeRepresentation,
    *,
    recheck: float = WAIT_LIMIT,
    in_memory: Callable[[], bool] = lambda: False,
) -> web.Response:
    """Respond to a GET or HEAD with what `make` returns; with `Prefer: wait=SECONDS`, once that is new.

    New is a content that `If-None-Match` does not list, and any content after none.
    `recheck` is the interval in seconds at which to call `make` again for changes that the watch does not report.
    `in_memory` returns whether there are no such changes: then the response may be cached.
    """
    seconds = representation.prefer_wait(request)
    known = representation.if_none_match(request)
    epoch = handler_api.epoch()
    result = await _try_make(make)
    was_long_poll = handler_api.deadline(request) is not None
    if seconds is not None and _is_known(result, known):
        was_long_poll = True
        loop = asyncio.get_running_loop()
        deadline = handler_api.deadline(request) or loop.time() + seconds
        with request.app[PENDING].waiter(request, watch) as waiter:
            epoch = handler_api.epoch()
            result = await _try_make(make)
            while (
                _is_known(result, known)
                and not waiter.closed
                and (left := deadline - loop.time()) > 0
            ):
                if in_memory() and epoch == handler_api.epoch():
                    coalesced.coalesce(request, watch, seconds)
                await waiter.wait(min(left, recheck))
                epoch = handler_api.epoch()
                result = await _try_make(make)
        if (admission := request.get(bearer_auth.ADMISSION)) is not None:
            admission.check()
    if was_long_poll:
        request[handler_api.WAITED] = True
    applied = (
        representation.preference_applied(seconds) if seconds is not None and was_long_poll else {}
    )
    if isinstance(result, problems.Problem):
        result.headers.update(applied)
        raise result
    response = representation.build_response(request, result)
    response.headers.update(applied)
    # The response after a timeout differs from that to a request that does not wait.
    not_timed_out = seconds is None or not _is_known(result, known)
    # A `Last-Modified` in the future is sent as the present time, so it would differ each time.
    if not_timed_out and result.modified <= time.time() and in_memory():
        handler_api.mark_cacheable(request, epoch, was_long_poll=was_long_poll)
        if seconds and known is not None and epoch == handler_api.epoch():
            coalesced.coalesce_next(request, watch, seconds, known, result.etag)
    return response


async def _try_make(make: MakeRepresentation) -> Representation | problems.Problem:
    """Return the representation, or the problem that nothing has been published yet or the content has changed on disk."""
    try:
        return await make()
    except _errors.ContentAltered as error:
        return problems.from_error(error)
    except problems.Problem as problem:
        if problem.kind != "nothing-published":
            raise
        return problem


def _is_known(result: Representation | problems.Problem, known: EntityTags | None) -> bool:
    if isinstance(result, problems.Problem) or (known is not None and known.match(result.etag)):
        return True
    try:
        result.check()
    except _errors.ContentAltered:
        return True  # it cannot be sent, and a new content will follow
    return False
