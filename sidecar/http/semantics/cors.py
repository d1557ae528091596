"""Cross-origin resource sharing: which pages of other origins may read responses (https://fetch.spec.whatwg.org/#http-cors-protocol).

Origins are compared exactly; there is no `*`, and `Access-Control-Allow-Credentials` is never sent:
a page of an allowed origin sends a bearer token itself, in `Authorization`.
Every response of a shared route has `Vary: Origin`, so that no cache gives one page the response to another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from aiohttp import hdrs, web

from sidecar.http import handler_api
from sidecar.http.semantics import bearer_auth, cross_origin

MAX_AGE_SECONDS: Final = 600
"""Seconds for which a browser may keep the answer to a preflight."""

_METHODS: Final = "GET, HEAD"
_REQUEST_HEADERS: Final = (
    "Authorization, If-Match, If-Modified-Since, If-None-Match, If-Range, Last-Event-ID, Prefer, Range, traceparent,"
    " tracestate, X-Request-ID"
)
_RESPONSE_HEADERS: Final = (
    "Accept-Ranges, Content-Range, ETag, Preference-Applied, Retry-After, Sidecar-Published-At,"
    " Sidecar-Published-By, Sidecar-Request-Id, Sidecar-Signature, Sidecar-Stale, WWW-Authenticate"
)


class Cors:
    """The origins that may read the routes of an application.

    Args:
        origins: as browsers write them: `https://app.example.com`; empty for none.

    Raises:
        ConfigError: one of them is not an origin.

    >>> Cors(["https://app.example.com:443"])
    <Cors https://app.example.com>
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(map(cross_origin.parse_origin, origins))
        self._shared: set[object] = set()

    def __repr__(self) -> str:
        return f"<Cors {', '.join(sorted(self._origins))}>"

    def share(self, app: web.Application, routes: Sequence[web.RouteDef]) -> None:
        """Add routes to an application, and let pages of these origins read their responses."""
        app.add_routes(routes)
        if not self._origins:
            return
        self._shared.update(route.handler for route in routes)
        # Not a middleware: that comes too late for an event stream, and not at all to errors of others.
        app.on_response_prepare.append(self._make_signal())

        @bearer_auth.public
        async def preflight(request: web.Request) -> web.Response:
            return self._preflight(request)

        app.add_routes([web.options(route.path, preflight) for route in routes])

    def _preflight(self, request: web.Request) -> web.Response:
        response = web.Response(status=204, headers={"Allow": f"{_METHODS}, OPTIONS"})
        response.headers["Vary"] = f"{hdrs.ORIGIN}, {hdrs.ACCESS_CONTROL_REQUEST_METHOD}"
        if (origin := self._allowed(request)) is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _REQUEST_HEADERS
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(MAX_AGE_SECONDS)
        return response

    def _make_signal(self) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
        @handler_api.cache_safe
        async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
            self._add_headers(request, response)

        return add_headers

    def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.match_info.handler not in self._shared:
            return
        vary = response.headers.get(hdrs.VARY)
        response.headers[hdrs.VARY] = hdrs.ORIGIN if vary is None else f"{vary}, {hdrs.ORIGIN}"
        if (origin := self._allowed(request)) is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _RESPONSE_HEADERS

    def _allowed(self, request: web.Request) -> str | None:
        """Return the origin of a request if it is allowed."""
        given = request.headers.getall(hdrs.ORIGIN, ())
        return given[0] if len(given) == 1 and given[0] in self._origins else None
