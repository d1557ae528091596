"""Probes and metrics of a command that serves nothing else: `--port` of `collect` and `reload`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.process.health import Check, ProbeKind

if TYPE_CHECKING:
    from aiohttp import web


class Probed(NamedTuple):
    """The work whose health is reported."""

    name: str
    """Of the check, in the answers."""
    title: str
    description: str
    ready_question: str
    checks: Mapping[ProbeKind, Check]
    page: Callable[[], Awaitable[Mapping[str, object]]] | None = None
    """Returns the state that the page `/ui` shows; None: there is no page."""


def beside(
    main: Coroutine[Any, Any, object], probed: Probed, host: str, port: int
) -> Coroutine[Any, Any, None]:
    """Run the work of a command together with a server for probes; an error of either ends both."""
    # Imported only if needed: most collections have no server.
    from sidecar.http.server import serve

    # No delay at the end: the work itself drains, and probes are answered until then.
    return _beside(main, serve.serve(make_app(probed), host=host, port=port, drain_delay=0.0))


async def _beside(main: Coroutine[Any, Any, object], server: Coroutine[Any, Any, object]) -> None:
    work = asyncio.create_task(main, name="work")
    answers = asyncio.create_task(server, name="probes")
    try:
        await asyncio.wait({work, answers}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # The server stops last, so that probes are answered until the end.
        for task in (work, answers):
            task.cancel()
            await asyncio.wait({task})
    for task in (work, answers):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


def make_app(probed: Probed) -> web.Application:
    """Return the application with `/livez`, `/readyz`, `/startupz`, `/metrics` and `/openapi.json`, and `/ui` if there is a page."""
    from aiohttp import web

    from sidecar.http import health_state, ops, problems
    from sidecar.http.semantics import openapi

    app = web.Application(middlewares=[problems.middleware])
    health_state.get_health(app).add(
        probed.name,
        live=probed.checks.get("live"),
        ready=probed.checks.get("ready"),
        started=probed.checks.get("started"),
    )
    titles = {
        "/livez": "Is it alive?",
        "/readyz": probed.ready_question,
        "/startupz": "Has it started?",
        "/metrics": "Prometheus' text format",
        "/openapi.json": "This description",
    }
    paths = {
        path: openapi.get(openapi.operation(title, responses={200: "Yes", 503: "No, and why"}))
        for path, title in titles.items()
    }
    if probed.page is not None:
        from sidecar.http.apps.page import assets

        app.add_routes(assets.page_routes(assets.COLLECT_PAGE, probed.page))
        paths |= assets.descriptions("A page for people: how the collection is")
    about = openapi.document(probed.title, probed.description, paths, token=False)
    app.add_routes(ops.ops_routes(lambda: about))
    return app
