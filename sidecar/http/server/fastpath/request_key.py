"""Requests: which bytes mean the same, which were seen before, and what is not for the lane.

What is left out, because an answer could differ from one time to the next or does not end with the request:
a request that shows a token, expects, upgrades, has a body or asks for a range.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aiohttp.http import HttpVersion11

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

LONGEST: Final = 4 << 10
"""Bytes of a request that is remembered."""
#: A client that asks in ever new words must not fill the memory.
_MOST_SEEN = 4096
#: aiohttp takes 128; what is left out of the key must not make it more.
_MOST_LINES = 64

_NEVER: Final = (
    "Authorization",  # each time, the token is asked for anew
    "Content-Length",
    "Expect",
    "If-Range",
    "Range",
    "Transfer-Encoding",
    "Upgrade",
)
#: Lines that proxies write differently each time and that no handler of ours reads. A line is left out of the key
#: only as a whole: visible ASCII, and what follows is a line of its own and not its continuation.
_HARMLESS = re.compile(
    rb"\r\n(?:traceparent|tracestate|baggage|b3|x-b3-[a-z]{1,20}|uber-trace-id|sentry-trace"
    rb"|x-request-id|x-correlation-id|x-amzn-trace-id|x-cloud-trace-context"
    rb"|x-forwarded-for|x-real-ip): [!-~](?:[ -~]{0,510}[!-~])?(?=\r\n[^ \t])",
    re.IGNORECASE,
)


class SeenOnce:
    """Requests that were seen once. What is asked for once is not worth the memory of its answer."""

    __slots__ = ("_marks",)

    def __init__(self) -> None:
        self._marks: set[int] = set()

    def before(self, cache_key: bytes) -> bool:
        """Tell whether it was seen before; from now on it was."""
        mark = hash(cache_key)
        if mark in self._marks:
            return True
        if len(self._marks) >= _MOST_SEEN:
            self._marks.clear()
        self._marks.add(mark)
        return False


def cache_key(request: bytes) -> bytes:
    """Return the request without the lines that change nothing.

    Those follow its first line: what begins with the end of a line is left as it is,
    for the parser skips that and would take the next line for the first.
    """
    if (
        request[:1] in (b"\r", b"\n")
        or len(request) > LONGEST
        or not request.endswith(b"\r\n\r\n")
        or request.count(b"\r\n\r\n") != 1
        or request.count(b"\r\n") > _MOST_LINES
    ):
        return request
    return _HARMLESS.sub(b"", request)


def is_cacheable(request: BaseRequest) -> bool:
    """Tell whether there is nothing in it that is left out."""
    return (
        request.method in ("GET", "HEAD")
        and request.version == HttpVersion11
        and request.keep_alive
        and not any(name in request.headers for name in _NEVER)
    )
