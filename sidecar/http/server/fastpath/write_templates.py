"""Write requests that differ only in their content.

A writer receives a new content each time. A template holds everything of request and response but the values:
the response differs only in `ETag` and `Date`, and the value of `content` is accepted only
if it consists of characters that have no other meaning in a URL:

    handler            calls `mark_writable` with the function that publishes another value
    FastPathProtocol   calls that function, and buffers further input until it has finished
    WriteTemplates     renders the response

If the write fails, aiohttp gets the request after all, and its handler reads the result (`prior_result`)
instead of publishing a second time. Error responses therefore need no code here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.http.server import durations
from sidecar.http.server.fastpath import counters, request_key, serialized_response
from sidecar.http.server.fastpath.counters import ResponseCounter

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    from sidecar.http.handler_api import WriteFunction
    from sidecar.http.server.fastpath.date_header import DateHeader
    from sidecar.http.server.fastpath.request_key import SeenOnce

_MAX_TEMPLATES = 128
#: Characters of a `content` value: those of a URL query (RFC 3986 section 3.4)
#: without `&` and `;`, which some parsers split at. The handler's own code validates the percent-encoding.
_VALUE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$'()*+,/:=?@%"
_BEFORE_VALUE: Final = b"?content="
_AFTER_VALUE: Final = b" HTTP/1.1\r\n"
#: Lines that the cache key has kept are not read for each request (`request_key.ignored_lines`).
_CONTEXT_LINE: Final = re.compile(rb"\r\n(?:x-request-id|traceparent):", re.IGNORECASE)
_NO_LINES: Final[Mapping[bytes, bytes]] = {}


class WriteTemplate(NamedTuple):
    """The response to a write around the values of `ETag` and `Date`, and the function that publishes another content."""

    write: WriteFunction
    before: bytes
    between: bytes
    after: bytes
    counter: ResponseCounter
    labels: tuple[str, str]
    """Method and route, for the duration."""


class WriteTemplates:
    """Templates, keyed by the bytes before and after the value of `content` in a request.

    Templates hold no state that changes, so they are never invalidated; the function they call lives as long as the server.
    """

    def __init__(self, seen: SeenOnce, date_header: DateHeader) -> None:
        self._templates: dict[tuple[bytes, bytes], WriteTemplate] = {}
        self._seen = seen
        self._date_header = date_header

    def __len__(self) -> int:
        return len(self._templates)

    def find(self, request: bytes) -> tuple[WriteTemplate, bytes, Mapping[bytes, bytes]] | None:
        """Return the template that matches a request, None if there is none.

        With it come the value of `content` in the request, and the header lines that the cache key omits.
        """
        if not self._templates or (parts := _split_request(request)) is None:
            return None
        before, value, after = parts
        lines: Mapping[bytes, bytes] = _NO_LINES
        template = self._templates.get((before, after))
        if template is None:
            template = self._templates.get((before, request_key.cache_key(after)))
            lines = request_key.ignored_lines(after) if template is not None else lines
        return None if template is None else (template, value, lines)

    def render(self, template: WriteTemplate, etag: str) -> bytes:
        """Return the complete response to a successful write, with the current `Date`, and count it."""
        date = self._date_header.date or self._date_header.start()
        template.counter.value += 1
        return b"".join((template.before, etag.encode(), template.between, date, template.after))

    def store(
        self, data: bytes, request: BaseRequest, response: web.Response, write: WriteFunction
    ) -> None:
        """Store the response to a write as a template, when such a request is seen for the second time."""
        parts = _split_request(data)
        if parts is None or request.method != "GET" or response.status != 200:
            return
        before, _, after = parts
        key = (before, request_key.cache_key(after))
        if (
            key in self._templates
            or _CONTEXT_LINE.search(key[1])
            or len(before) + len(after) > request_key.MAX_REQUEST_BYTES
            or (template := _make_template(request, response, write)) is None
            or not self._seen.before(b"".join(key))
        ):
            return
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[key] = template


def _make_template(
    request: BaseRequest, response: web.Response, write: WriteFunction
) -> WriteTemplate | None:
    """Return the response to a write as a template; None if it has no `ETag` or cannot be serialized."""
    sent, tag = serialized_response.serialize(request, response), response.headers.get("ETag")
    if sent is None or tag is None:
        return None
    before, found, between = sent.before.partition(f"\r\nETag: {tag}\r\n".encode())
    if not found:
        return None
    return WriteTemplate(
        write,
        before + b"\r\nETag: ",
        b"\r\n" + between,
        sent.after,
        counters.get_counter(str(response.status)),
        durations.labels(request),
    )


def _split_request(request: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Split a request at the value of `content`; None if there is other query data or a special character."""
    query, end = request.find(b"?"), request.find(_AFTER_VALUE)
    if not request.startswith(_BEFORE_VALUE, query):
        return None
    start = query + len(_BEFORE_VALUE)
    value = request[start:end]
    if end < start or value.translate(None, _VALUE):
        return None
    return request[:start], value, request[end:]
