"""Serve the files of the page: HTML, scripts and a style sheet, as they are in the package.

They load nothing from elsewhere, and the Content-Security-Policy forbids it, as well as inline scripts and styles.
A file is read when it is requested and not kept, so a page that nobody opens costs no memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from sidecar import __version__
from sidecar.http import problems
from sidecar.http.semantics import bearer_auth, openapi, representation
from sidecar.process import executor
from sidecar.volume.content.snapshot import etag, version_of

CONTENT_PAGE: Final = "content.html"
"""The page of the reader and of the writer."""
COLLECT_PAGE: Final = "collect.html"

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    # Not `no-referrer`: with that, the `Origin` of some requests of the page would be `null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_STATIC: Final = Path(__file__).with_name("static")
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes(
    page: str, describe: Callable[[], Awaitable[Mapping[str, object]]]
) -> list[web.RouteDef]:
    """Return the routes of the page and its files, and `/ui/state`.

    Args:
        page: the HTML file that `/ui` responds with.
        describe: returns what `/ui/state` tells the page about the application. Only that needs a token.
    """

    @bearer_auth.public
    async def show_page(request: web.Request) -> web.Response:
        return await _answer(request, page)

    @bearer_auth.public
    async def redirect(_: web.Request) -> web.Response:
        # Relative addresses on the page begin at the directory of `/ui`.
        return web.Response(status=308, headers={"Location": "../ui"})

    async def state(_: web.Request) -> web.Response:
        return representation.json_answer({"sidecar": __version__, **await describe()})

    return [
        web.get("/ui", show_page),
        web.get("/ui/", redirect),
        web.get("/ui/state", state),
        web.get("/ui/{asset}", _get_asset),
    ]


def descriptions(summary: str) -> dict[str, openapi.Object]:
    """Return what `/openapi.json` says of these routes; `summary` is that of the page."""
    text: openapi.Object = {"type": "string"}
    page = openapi.operation(
        summary,
        responses={200: openapi.content("The page", "text/html", text), 304: "Not changed"},
        open_to_all=True,
    )
    asset = openapi.operation(
        "A file of the page",
        responses={
            200: openapi.content("A script, a style sheet or an image", "*/*", text),
            304: "Not changed",
            404: "There is no such file",
        },
        parameters=[openapi.path_parameter("asset", "Its name")],
        open_to_all=True,
    )
    slash = openapi.operation("The page", responses={308: "It is at `/ui`"}, open_to_all=True)
    state = openapi.operation(
        "What the page shows beside the content",
        responses={200: openapi.json("The state", {"type": "object"})},
    )
    return {
        "/ui": openapi.get(page),
        "/ui/": openapi.get(slash),
        "/ui/{asset}": openapi.get(asset),
        "/ui/state": openapi.get(state),
    }


@bearer_auth.public
async def _get_asset(request: web.Request) -> web.Response:
    return await _answer(request, request.match_info["asset"])


async def _answer(request: web.Request, name: str) -> web.Response:
    path = _STATIC / name
    # Names come from clients: only one without a directory that has a type of ours.
    if path.name != name or path.suffix not in _TYPES:
        raise _make_not_found_problem(request)
    try:
        body, modified = await executor.run_in_thread(_read, path)
    except (OSError, ValueError) as error:
        raise _make_not_found_problem(request) from error
    return representation.build_response(
        request,
        representation.Representation(
            body=body,
            etag=etag(version_of(body)),
            modified=modified,
            content_type=_TYPES[path.suffix],
            dated=False,  # a reproducible image gives all versions the same time
            headers=HEADERS,
        ),
    )


def _read(path: Path) -> tuple[bytes, float]:
    return path.read_bytes(), path.stat().st_mtime


def _make_not_found_problem(request: web.Request) -> problems.Problem:
    return problems.Problem("not-found", f"there is nothing at {request.path}")
