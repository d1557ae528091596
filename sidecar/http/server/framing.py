"""What RFC 9112 demands of a request and aiohttp does not: checked once for each that its parser lets through.

    section 6.3     a `Transfer-Encoding` that does not end with `chunked`, or of HTTP/1.0: 400, and closed
    section 3.2     an invalid `Host`: 400, and closed
    section 2.3     another major version: 505 (RFC 9110 section 15.6.6); a higher minor one is served as HTTP/1.1
    section 7.8 of RFC 9110    an `Upgrade` that is ignored, and CONNECT: the connection ends with the answer,
                    for the parser drops what comes behind

A fault is answered in the place of the request, by whatever application is served.
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

#: A name, an IPv4 address, or something in brackets, and a port (RFC 3986 section 3.2.2; of sub-delims no name has any).
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?\])(?::\d{0,5})?")
#: A request line of a minor version that is not known: what is sent then is HTTP/1.1 (RFC 9110 section 2.5).
_LATER: Final = re.compile(rb"[!-~]{1,32} [!-~]+ HTTP/1\.([2-9])\r\n")

_END: Final = b"\r\n\r\n"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def enforce(server: web.Server) -> None:
    """Let a server check each request before its application has it."""
    server.request_factory = _checked(server.request_factory)
    server.request_handler = _refusing(server.request_handler)


def as_known_version(data: bytes) -> bytes:
    r"""Return bytes that begin a request, as HTTP/1.1 where they say a higher minor version.

    >>> as_known_version(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n")
    b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
    """
    found = _LATER.match(data)
    return data if found is None else data[: found.start(1)] + b"1" + data[found.end(1) :]


def body_form(message: object) -> str:
    """Return how the end of a request's body is found: by its `length`, by its `chunks`; empty where that is not known."""
    if not isinstance(message, RawRequestMessage) or message.compression:
        return ""
    return "chunks" if message.chunked else "length"


def has_data_after_body(form: str, data: bytes, size: int, new: int) -> bool:
    r"""Tell whether bytes came behind a body that has ended with them: the beginning of a head.

    Args:
        form: of the body, see `body_form`.
        data: the bytes.
        size: how many of them belong to the body.
        new: the number of requests that began with them. With several it cannot be known, and is taken for true.

    >>> put = b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    >>> goes_on_behind_body("length", put, 1, 1), goes_on_behind_body("length", put + b"GET", 1, 1)
    (False, True)
    """
    if form == "chunks":
        return not (data.endswith(_END) or _END.endswith(data))
    if form != "length" or new > 1:
        return new > 1
    head = data.find(_END) + len(_END) if new else 0
    return len(data) > head + size


def _checked(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    def request(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        fault = _fault(message)
        if fault is not None or message.method == "UNKNOWN":
            # As well what the parser has refused, which aiohttp answers as to a client of HTTP/1.0.
            message = message._replace(version=HttpVersion11, should_close=True)
        elif message.upgrade or message.method == "CONNECT":
            message = message._replace(should_close=True)
        made = make(_with_a_path(message), *others)
        if fault is not None:
            made[FAULT] = fault
        return made

    return request


def _refusing(handle: Handler) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        # Nearly all have nothing noted yet, and `get` would have to raise and catch a KeyError.
        fault = request.get(FAULT) if len(request) else None
        if fault is None:
            return await handle(request)
        answer = problems.to_response(fault)
        answer.force_close()
        return answer

    return handler


def _fault(message: RawRequestMessage) -> problems.Problem | None:
    """Return what is wrong with a request that the parser has let through."""
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


def _with_a_path(message: RawRequestMessage) -> RawRequestMessage:
    """Let an address that ends with the host mean `/` (RFC 9110 section 4.2.3); aiohttp finds nothing at no path."""
    url = message.url
    if url.absolute and url.scheme and not url.relative().raw_path:
        root = url.build(path="/", query_string=url.raw_query_string, encoded=True)
        return message._replace(url=url.join(root))
    return message
