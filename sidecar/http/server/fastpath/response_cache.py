"""Complete responses by the complete bytes of their request, valid until something changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sidecar.http import handler_api
from sidecar.http.server import memfd
from sidecar.http.server.fastpath import request_key, serialized_response
from sidecar.http.server.fastpath.counters import ResponseCounter
from sidecar.http.server.fastpath.date_header import DateHeader
from sidecar.http.server.fastpath.request_key import SeenOnce
from sidecar.http.server.fastpath.serialized_response import SerializedResponse
from sidecar.http.server.memfd import MemFd

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

#: Bounds of the cache: a client with ever new requests must not fill the memory.
_MAX_RESPONSES = 1024
_MAX_CACHE_BYTES = 4 << 20

HotResponse: TypeAlias = "tuple[bytes | MemFd, ResponseCounter, float]"
"""A complete response, its counter, and the end of the second for which its `Date` is valid (event loop clock)."""


class ResponseCache:
    """Cached responses, keyed by the complete bytes of their request."""

    def __init__(self) -> None:
        self._responses: dict[bytes, SerializedResponse] = {}
        self._bytes = 0
        self.hot: dict[bytes, HotResponse] = {}
        """Responses with the `Date` of this second, ready to be written. The dict object never changes; it is cleared in place."""
        self.date_header = DateHeader(self.hot.clear)
        self.seen = SeenOnce()
        handler_api.register_cache(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} answers={len(self._responses)} bytes={self._bytes}>"

    def find(self, request: bytes) -> bytes | MemFd | None:
        """Return the complete response to a request, with the current `Date`, and count it; None if it is not cached."""
        found = self.hot.get(request)
        if found is None and (not self._responses or (found := self._date(request)) is None):
            return None
        serialized, counter, _ = found
        counter.value += 1
        return serialized

    def contains(self, key: bytes) -> bool:
        """Return whether a response to this key is cached."""
        return key in self._responses

    def store(self, data: bytes, request: BaseRequest, response: web.Response, epoch: int) -> None:
        """Cache the response that aiohttp has sent, unless the epoch has changed since.

        A response is cached when its request is seen for the second time.
        """
        if epoch != handler_api.epoch() or len(data) > request_key.MAX_REQUEST_BYTES:
            return
        answer = serialized_response.serialize(request, response)
        if answer is None:
            return
        key = request_key.cache_key(data)
        if key in self._responses or not self.seen.before(key):
            return
        size = len(key) + len(answer.before) + len(answer.after)
        if self._bytes + size > _MAX_CACHE_BYTES or len(self._responses) >= _MAX_RESPONSES:
            self.clear()
        self._responses[key] = answer
        self._bytes += size

    def clear(self) -> None:
        """Remove every response."""
        self._responses.clear()
        self.hot.clear()
        self._bytes = 0

    def _date(self, request: bytes) -> HotResponse | None:
        key = request_key.cache_key(request)
        found = self.hot.get(key)
        if found is not None:
            return found
        answer = self._responses.get(key)
        if answer is None:
            return None
        date = self.date_header.date or self.date_header.start()
        found = self.hot[key] = (
            memfd.to_memfd(answer.before + date + answer.after),
            answer.counter,
            self.date_header.expires_at,
        )
        return found
