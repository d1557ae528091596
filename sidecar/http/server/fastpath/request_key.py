"""Cache keys: which requests are equal, which have been seen before, and which are not cacheable.

Not cacheable is a request whose response may differ from one time to the next, or that does not end with its head:
one with credentials, an expectation, an upgrade, a body or a range.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp.http import HttpVersion11

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

MAX_REQUEST_BYTES: Final = 4 << 10
"""Largest request, in bytes, that is cached."""
#: Bounds the memory that a client with ever new requests can fill.
_MAX_SEEN_REQUESTS = 4096
#: aiohttp accepts 128 header lines. Lines that the key omits must not raise that limit.
_MAX_HEADER_LINES = 64

_UNCACHEABLE_HEADERS: Final = (
    "Authorization",  # the token is checked for each request
    "Content-Length",
    "Expect",
    "If-Range",
    "Range",
    "Transfer-Encoding",
    "Upgrade",
)
#: Headers that proxies set per request and that no response depends on. A line is omitted from the key
#: only as a whole: visible ASCII, followed by a new line and not by a continuation (obs-fold).
_IGNORED_HEADER_LINE = re.compile(
    rb"\r\n(?:traceparent|tracestate|baggage|b3|x-b3-[a-z]{1,20}|uber-trace-id|sentry-trace"
    rb"|x-request-id|x-correlation-id|x-amzn-trace-id|x-cloud-trace-context"
    rb"|x-forwarded-for|x-real-ip): [!-~](?:[ -~]{0,510}[!-~])?(?=\r\n[^ \t])",
    re.IGNORECASE,
)


class SeenOnce:
    """Hashes of requests that were seen once. A response is cached only from the second request on."""

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def before(self, cache_key: bytes) -> bool:
        """Return whether the key was seen before, and record it."""
        digest = hash(cache_key)
        if digest in self._hashes:
            return True
        if len(self._hashes) >= _MAX_SEEN_REQUESTS:
            self._hashes.clear()
        self._hashes.add(digest)
        return False


def cache_key(request: bytes) -> bytes:
    """Return the request without the header lines that do not affect the response.

    Only lines after the request line are omitted. A request that starts with a line break is returned unchanged:
    the parser skips that, and the next line would become the request line.
    """
    if (
        request[:1] in (b"\r", b"\n")
        or len(request) > MAX_REQUEST_BYTES
        or not request.endswith(b"\r\n\r\n")
        or request.count(b"\r\n\r\n") != 1
        or request.count(b"\r\n") > _MAX_HEADER_LINES
    ):
        return request
    return _IGNORED_HEADER_LINE.sub(b"", request)


def ignored_lines(request: bytes) -> dict[bytes, bytes]:
    r"""Return the header lines that `cache_key` omits, by their names in lower case; of several with one name the first.

    >>> ignored_lines(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 7\r\n\r\n")
    {b'x-request-id': b'7'}
    """
    found: dict[bytes, bytes] = {}
    for line in _IGNORED_HEADER_LINE.findall(request):
        name, _, value = line[2:].partition(b": ")
        found.setdefault(name.lower(), value)
    return found


def is_cacheable(request: BaseRequest) -> bool:
    """Return whether the response to a request may be cached."""
    return (
        request.method in ("GET", "HEAD")
        and request.version == HttpVersion11
        and request.keep_alive
        and not any(name in request.headers for name in _UNCACHEABLE_HEADERS)
    )
