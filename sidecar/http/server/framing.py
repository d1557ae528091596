"""Requirements of RFC 9112 that aiohttp does not check, applied once to each parsed request.

    section 6.3     a `Transfer-Encoding` that does not end with `chunked`, or in HTTP/1.0: 400, and close
    section 3.2     an invalid `Host`: 400, and close
    section 2.3     another major version: 505 (RFC 9110 section 15.6.6); a higher minor version is served as HTTP/1.1
    section 7.8 of RFC 9110    an ignored `Upgrade`, and CONNECT: the connection closes after the response,
                    because the parser drops what follows

The error response replaces that of the application.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage

from sidecar.http import problems

FAULT: web.RequestKey[problems.Problem] = web.RequestKey("sidecar.fault", problems.Problem)

#: A name, an IPv4 address or an IP literal in brackets, and a port (RFC 3986 section 3.2.2; without sub-delims, which no name has).
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?\])(?::\d{0,5})?")
#: A request line with an unknown minor version: it is processed as HTTP/1.1 (RFC 9110 section 2.5).
_HIGHER_MINOR_VERSION: Final = re.compile(rb"[!-~]{1,32} [!-~]+ HTTP/1\.([2-9])\r\n")

_HEAD_END: Final = b"\r\n\r\n"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def enforce(server: web.Server) -> None:
    """Make a server check each request before its application."""
    server.request_factory = _check_requests(server.request_factory)
    server.request_handler = _reject_faults(server.request_handler)


def lower_minor_version(data: bytes) -> bytes:
    r"""Return the start of a request with a higher minor version replaced by HTTP/1.1.

    >>> lower_minor_version(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n")
    b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
    """
    found = _HIGHER_MINOR_VERSION.match(data)
    return data if found is None else data[: found.start(1)] + b"1" + data[found.end(1) :]


def body_framing(message: object) -> str:
    """Return the framing of a request body, `length` or `chunks`; empty if unknown."""
    if not isinstance(message, RawRequestMessage) or message.compression:
        return ""
    return "chunks" if message.chunked else "length"


def has_data_after_body(framing: str, data: bytes, size: int, new: int) -> bool:
    r"""Return whether data follows the end of a body: the start of the next head.

    Args:
        framing: of the body, see `body_framing`.
        data: the bytes received.
        size: the number of them that belong to the body.
        new: the number of requests that started in them. With several the answer is unknown, and True is returned.

    >>> put = b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    >>> has_data_after_body("length", put, 1, 1), has_data_after_body("length", put + b"GET", 1, 1)
    (False, True)
    """
    if framing == "chunks":
        return not (data.endswith(_HEAD_END) or _HEAD_END.endswith(data))
    if framing != "length" or new > 1:
        return new > 1
    head = data.find(_HEAD_END) + len(_HEAD_END) if new else 0
    return len(data) > head + size


def _check_requests(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    def request(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        fault = _fault(message)
        if fault is not None or message.method == "UNKNOWN":
            # Includes requests that the parser has rejected, which aiohttp answers as HTTP/1.0.
            message = message._replace(version=HttpVersion11, should_close=True)
        elif message.upgrade or message.method == "CONNECT":
            message = message._replace(should_close=True)
        request_object = make(_normalise_absolute_uri(message), *others)
        if fault is not None:
            request_object[FAULT] = fault
        return request_object

    return request


def _reject_faults(handle: Handler) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        # Most requests have no keys yet, and `get` would raise and catch a KeyError.
        fault = request.get(FAULT) if len(request) else None
        if fault is None:
            return await handle(request)
        answer = problems.to_response(fault)
        answer.force_close()
        return answer

    return handler


def _fault(message: RawRequestMessage) -> problems.Problem | None:
    """Return the violation in a request that the parser has accepted."""
    version, headers, url = message.version, message.headers, message.url
    if version.major != 1:
        detail = f"this is HTTP/{version.major}.{version.minor}, and only HTTP/1.1 is spoken here"
        return problems.Problem("unsupported-version", detail)
    coded = "Transfer-Encoding" in headers
    if coded and (not message.chunked or version == HttpVersion10):
        return _bad("Transfer-Encoding does not end with `chunked`, or is none of HTTP/1.0")
    if not _is_host(headers.get("Host", "")):
        return _bad("Host is no name or address with a port")
    if url.absolute and not _is_host(url.raw_authority):
        return _bad("the address names no host")
    return None


@lru_cache(maxsize=64)
def _is_host(text: str) -> bool:
    return _HOST.fullmatch(text) is not None


def _bad(reason: str) -> problems.Problem:
    return problems.Problem("bad-request", f"this is not HTTP/1.1 as RFC 9112 has it: {reason}")


def _normalise_absolute_uri(message: RawRequestMessage) -> RawRequestMessage:
    """Use `/` for an absolute URI without a path (RFC 9110 section 4.2.3); aiohttp has no route for an empty path."""
    url = message.url
    if url.absolute and url.scheme and not url.relative().raw_path:
        root = url.build(path="/", query_string=url.raw_query_string, encoded=True)
        return message._replace(url=url.join(root))
    return message
