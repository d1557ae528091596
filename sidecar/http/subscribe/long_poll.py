"""Answers to requests that wait for something newer than they have."""

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
    """Let requests of this application wait, at the longest until it shuts down, whoever runs it."""
    waits = app[PENDING] = PendingRequests()
    app.on_shutdown.append(waits.shut_down)


async def respond(
    request: web.Request,
    watch: Watch[Any],
    make: MakeRepresentation,
    *,
    recheck: float = WAIT_LIMIT,
    in_memory: Callable[[], bool] = lambda: False,
) -> web.Response:
    """Answer a GET or HEAD with what `make` returns; with `Prefer: wait=SECONDS`, once it is something new.

    New is what the request's `If-None-Match` does not name, and any content where there was none.
    `recheck` is the number of seconds between looks for changes of which the watch does not tell.
    `in_memory` says whether there are none: then the answer can be remembered for the same request.
    """
    seconds = representation.prefer_wait(request)
    known = representation.if_none_match(request)
    generation = handler_api.epoch()
    found = await _attempt(make)
    waited = handler_api.deadline(request) is not None
    if seconds is not None and _is_old(found, known):
        waited = True
        loop = asyncio.get_running_loop()
        limit = handler_api.deadline(request) or loop.time() + seconds
        with request.app[PENDING].bell(request, watch) as bell:
            generation = handler_api.epoch()
            found = await _attempt(make)
            while _is_old(found, known) and not bell.over and (left := limit - loop.time()) > 0:
                if in_memory() and generation == handler_api.epoch():
                    coalesced.coalesce(request, watch, seconds)
                await bell.wait(min(left, recheck))
                generation = handler_api.epoch()
                found = await _attempt(make)
        if (admission := request.get(bearer_auth.ADMISSION)) is not None:
            admission.check()
    applied = representation.preference_applied(seconds) if seconds is not None and waited else {}
    if isinstance(found, problems.Problem):
        found.headers.update(applied)
        raise found
    response = representation.build_response(request, found)
    response.headers.update(applied)
    # The answer to who has waited in vain is not the one to who asks.
    at_once = seconds is None or not _is_old(found, known)
    # A date that is still to come is sent as the present one, so it would be another each time.
    if at_once and found.modified <= time.time() and in_memory():
        handler_api.mark_cacheable(request, generation, waited=waited)
        if seconds and known is not None and generation == handler_api.epoch():
            coalesced.coalesce_next(request, watch, seconds, known, found.etag)
    return response


async def _attempt(make: MakeRepresentation) -> Representation | problems.Problem:
    """Return what there is; that there is nothing yet is a result as well, for something may come."""
    try:
        return await make()
    except _errors.ContentAltered as error:
        return problems.from_error(error)
    except problems.Problem as problem:
        if problem.kind != "nothing-published":
            raise
        return problem


def _is_old(found: Representation | problems.Problem, known: EntityTags | None) -> bool:
    if isinstance(found, problems.Problem) or (known is not None and known.match(found.etag)):
        return True
    try:
        found.check()
    except _errors.ContentAltered:
        return True  # it cannot be sent, and another one will come
    return False
