"""Serialize a response to the bytes that aiohttp has sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sidecar.http import handler_api
from sidecar.http.server import durations
from sidecar.http.server.fastpath import counters, request_key
from sidecar.http.server.fastpath.counters import ResponseCounter

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

_DATE_LENGTH = len("Sun, 06 Nov 1994 08:49:37 GMT")


class SerializedResponse(NamedTuple):
    """The bytes before and after the value of `Date`, and the counter of the status."""

    before: bytes
    after: bytes
    counter: ResponseCounter


def serialize(request: BaseRequest, response: web.Response) -> SerializedResponse | None:
    """Return a response as aiohttp has written it; None if the bytes are not known, or may differ the next time.

    A body that is sent in chunks (`representation.CHUNK_SIZE`) is not serialized: a slow client must hold one chunk in memory, not all.

    The byte count of aiohttp confirms the result: nothing else was sent, and nothing in another encoding.
    """
    if response.status not in (200, 304) or not response.keep_alive:
        return None
    if not request_key.is_cacheable(request):
        return None
    body = response.body if request.method != "HEAD" and response.status == 200 else None
    if not isinstance(body, bytes | None):
        return None
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    before, found, after = "\r\n".join(lines).partition("\r\nDate: ")
    sent = SerializedResponse(
        (before + found).encode("utf-8", "surrogateescape"),
        after[_DATE_LENGTH:].encode("utf-8", "surrogateescape") + b"\r\n\r\n" + (body or b""),
        counters.get_counter(
            str(response.status),
            *(() if handler_api.WAITED in request else durations.labels(request)),
        ),
    )
    size = len(sent.before) + _DATE_LENGTH + len(sent.after)
    return sent if found and size == response.body_length else None
