"""A span for each request that changes something, by the HTTP conventions of OpenTelemetry.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
Of the query only flags are shown: `content` is a content.
The middleware is not `cache_safe`, so each request reaches it, and none is answered by the fast path.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from sidecar.http.semantics import bearer_auth
from sidecar.process import tracing

_SHOWN: Final = ("dry_run", "purge", "name")
"""Parameters of a query whose values are no content."""
_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})
_SERVER_ERROR: Final = 500


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have a span around each request that changes something: the outermost middleware, so that it sees each response."""
    if not bearer_auth.is_change(request.method, request.match_info.handler):
        return await handler(request)
    known = request.method in _KNOWN_METHODS
    resource = request.match_info.route.resource
    route = None if resource is None else resource.canonical
    method = request.method if known else "HTTP"
    with tracing.span(
        method if route is None else f"{method} {route}",
        {
            "http.request.method": request.method if known else "_OTHER",
            "http.request.method_original": None if known else request.method,
            "http.route": route,
            "url.scheme": request.scheme,
            "url.path": request.rel_url.raw_path,
            "url.query": _query(request),
            **_server(request),
            "client.address": request.remote or None,
            "network.protocol.version": f"{request.version.major}.{request.version.minor}",
            "user_agent.original": request.headers.get("User-Agent"),
        },
        kind="server",
        context=tracing.context_of_request(request.headers),
    ) as span:
        status = 0
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            tracing.set_error(span, "cancelled")  # the client has disconnected
            raise
        except Exception:
            status = _SERVER_ERROR
            raise
        finally:
            tracing.set_attributes(span, {"http.response.status_code": status or None})
            if status >= _SERVER_ERROR:
                tracing.set_error(span, str(status))
        return response


def _server(request: web.Request) -> dict[str, str | int | None]:
    try:
        return {"server.address": request.url.host, "server.port": request.url.port}
    except ValueError:  # no host that fits: that is for the handler to say
        return {}


def _query(request: web.Request) -> str | None:
    shown = [f"{name}={request.query[name]}" for name in _SHOWN if name in request.query]
    hidden = ["content=REDACTED"] if "content" in request.query else []
    return "&".join([*hidden, *shown]) or None
