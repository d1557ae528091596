"""The duration of requests by method and route, for the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import hdrs

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

OTHER: Final = "other"
"""The label of a method that is not standard, and of a path that leads nowhere: clients must not make series."""


def labels(request: BaseRequest) -> tuple[str, str]:
    """Return method and route of a request, as `("GET", "/files/{name}")`."""
    method = request.method if request.method in hdrs.METH_ALL else OTHER
    try:
        info = getattr(request, "match_info", None)
    except AssertionError:  # aiohttp has not come to the routes
        info = None
    resource = None if info is None else info.route.resource
    return method, OTHER if resource is None else resource.canonical
