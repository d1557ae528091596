"""Keep the newest content in an aiohttp application: `follow` watches it, `LATEST` is its key."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Generic, Unpack, overload

from aiohttp import web

from sidecar.http import handler_api, health_state, problems
from sidecar.process import arguments
from sidecar.volume.content.snapshot import Snapshot, T
from sidecar.volume.watch.options import Options, check
from sidecar.volume.watch.watch import Watch, shared

FIRST_SCAN_TIMEOUT = 1.5
"""Seconds that the start of an application waits for the first scan of its content."""


class Latest(Generic[T]):
    """The newest content of one file or directory, in memory.

    >>> from aiohttp import web
    >>> async def version(request: web.Request) -> web.Response:
    ...     return web.json_response(request.app[LATEST].snapshot.version)
    """

    def __init__(self, watch: Watch[T]) -> None:
        self._watch = watch

    def __repr__(self) -> str:
        return f"<Latest of {self._watch!r}>"

    @property
    def snapshot(self) -> Snapshot[T]:
        """The last valid content, kept whatever happens to the volume; `stale` tells if it is out of date.

        Raises:
            HTTPServiceUnavailable: nothing has been published yet.
                In a handler that becomes a 503 response with `Retry-After`, as a problem (RFC 9457).
        """
        snapshot = self._watch.snapshot
        if snapshot is None:
            reason = self._watch.problem or f"nothing has been published to {self._watch.path} yet"
            raise NotPublishedYet(reason)
        return snapshot

    @property
    def stale(self) -> str | None:
        """Why the content may be out of date, None if it is current."""
        return self._watch.stale

    @property
    def etag(self) -> str | None:
        """The entity tag of the content, None if there is none."""
        return self._watch.etag

    @property
    def watch(self) -> Watch[T]:
        """The watch, to wait for changes or to subscribe to them."""
        return self._watch


class NotPublishedYet(problems.Problem, web.HTTPServiceUnavailable):
    """503 with `Retry-After`: nothing has been published yet."""

    def __init__(self, reason: str) -> None:
        super().__init__("nothing-published", reason, headers={"Retry-After": problems.RETRY_AFTER})


LATEST: web.AppKey[Latest[None]] = web.AppKey("sidecar.latest", Latest)
"""The key of the newest content: `request.app[sidecar.LATEST].snapshot`."""

_Context = Callable[[web.Application], AsyncIterator[None]]


@overload
def follow(
    path: str | os.PathLike[str],
    *,
    key: web.AppKey[Latest[None]] = LATEST,
    schema: None = None,
    required: bool = False,
    **options: Unpack[Options],
) -> _Context: ...
@overload
def follow(
    path: str | os.PathLike[str],
    *,
    key: web.AppKey[Latest[T]],
    schema: Callable[[Snapshot[Any]], T],
    required: bool = False,
    **options: Unpack[Options],
) -> _Context: ...
def follow(
    path: str | os.PathLike[str],
    *,
    key: web.AppKey[Latest[Any]] = LATEST,
    schema: Callable[[Snapshot[Any]], Any] | None = None,
    required: bool = False,
    **options: Unpack[Options],
) -> _Context:
    """Watch a file or a directory while an application runs: for its `cleanup_ctx`.

    Handlers find the newest content under `key`.
    The probes of `health_routes` include it: started and ready after the first scan, whatever its result,
    and alive while the path is watched. Before the first content, handlers respond with 503.
    With `required`, the application is not ready before the first content either: only for a Pod in which no other container
    is behind the same Service, because it would get no traffic as well.
    Applications that follow the same path share one watch. See `sidecar.watch` for the other arguments.

    Raises:
        ConfigError: an argument is invalid.

    >>> from aiohttp import web
    >>> app = web.Application()
    >>> app.cleanup_ctx.append(follow("/shared"))
    """
    check(path, schema=schema, **options)
    arguments.check_instance("key", key, web.AppKey, "a web.AppKey")

    async def context(app: web.Application) -> AsyncIterator[None]:
        watch_context = (
            shared(path, **options) if schema is None else Watch(path, schema=schema, **options)
        )
        async with watch_context as one:
            app[key] = Latest(one)
            remove = _add_health_checks(app, one, required=required)
            forget = one.subscribe(handler_api.invalidate_all)
            await _wait_first_scan(one)
            try:
                yield
            finally:
                forget()
                remove()

    return context


async def _wait_first_scan(watch: Watch[Any]) -> None:
    """Wait, within the timeout, until the first response can be the content instead of 503.

    A content without a problem that is not shown yet is still in its quiet period: it follows in a moment.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_SCAN_TIMEOUT):
            await watch.looked()
            if watch.problem is None:
                await watch.changed(None, FIRST_SCAN_TIMEOUT)


def _add_health_checks(
    app: web.Application, watch: Watch[Any], *, required: bool
) -> Callable[[], None]:
    """Add the health checks of a watch; returns a function that removes them."""

    def live() -> str | None:
        return watch.failure

    def started() -> str | None:
        return None if watch.has_looked else f"the first look at {watch.path} is not over yet"

    def ready() -> str | None:
        if required and watch.snapshot is None:
            return watch.problem or f"nothing has been published to {watch.path} yet"
        return started() or live()

    def detail() -> Mapping[str, object]:
        # No data derived from the content: no entity tag, and no message of a schema.
        stale = "the schema refuses the newest content" if watch.refused else watch.stale
        return {"mode": watch.mode, "published": watch.snapshot is not None, "stale": stale}

    name = f"content of {watch.path}"
    remove = health_state.get_health(app).add(name, live=live, ready=ready, started=started)
    health_state.get_details(app)[name] = detail
    return remove
