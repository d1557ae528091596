"""Answers that are remembered whole, by the complete bytes of their request, until something changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sidecar.http import handler_api
from sidecar.http.server import memfd
from sidecar.http.server.fastpath import request_key, serialized_response
from sidecar.http.server.fastpath.counters import Counter
from sidecar.http.server.fastpath.date_header import DateHeader
from sidecar.http.server.fastpath.request_key import SeenOnce
from sidecar.http.server.fastpath.serialized_response import SerializedResponse
from sidecar.http.server.memfd import MemFd

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

#: Bounds of what is remembered: a client that asks in ever new words must not fill the memory.
_MOST_ANSWERS = 1024
_MOST_BYTES = 4 << 20

HotResponse: TypeAlias = "tuple[bytes | MemFd, Counter, float]"
"""A complete answer, where it is counted, and until when its `Date` holds, by the clock of the loop."""


class ResponseCache:
    """Answers by the complete bytes of their request."""

    def __init__(self) -> None:
        self._answers: dict[bytes, SerializedResponse] = {}
        self._bytes = 0
        self.wires: dict[bytes, HotResponse] = {}
        """What can be written as it is, in this second. It stays the same object, and is emptied."""
        self.second = DateHeader(self.wires.clear)
        self.seen = SeenOnce()
        handler_api.register_cache(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} answers={len(self._answers)} bytes={self._bytes}>"

    def find(self, request: bytes) -> bytes | MemFd | None:
        """Return the complete answer to these bytes, dated now, and count it; None: ask aiohttp."""
        found = self.wires.get(request)
        if found is None and (not self._answers or (found := self._date(request)) is None):
            return None
        wire, counter, _ = found
        counter.number += 1
        return wire

    def knows(self, key: bytes) -> bool:
        """Tell whether there is an answer to these bytes."""
        return key in self._answers

    def keep(self, data: bytes, request: BaseRequest, response: web.Response, epoch: int) -> None:
        """Remember what aiohttp has sent for these bytes, unless something has changed meanwhile.

        That is done at the second time: what is asked for once is not worth the memory.
        """
        if epoch != handler_api.epoch() or len(data) > request_key.LONGEST:
            return
        answer = serialized_response.serialize(request, response)
        if answer is None:
            return
        key = request_key.cache_key(data)
        if key in self._answers or not self.seen.before(key):
            return
        size = len(key) + len(answer.before) + len(answer.after)
        if self._bytes + size > _MOST_BYTES or len(self._answers) >= _MOST_ANSWERS:
            self.clear()
        self._answers[key] = answer
        self._bytes += size

    def clear(self) -> None:
        """Forget every answer."""
        self._answers.clear()
        self.wires.clear()
        self._bytes = 0

    def _date(self, request: bytes) -> HotResponse | None:
        key = request_key.cache_key(request)
        found = self.wires.get(key)
        if found is not None:
            return found
        answer = self._answers.get(key)
        if answer is None:
            return None
        date = self.second.date or self.second.begin()
        found = self.wires[key] = (
            memfd.to_memfd(answer.before + date + answer.after),
            answer.counter,
            self.second.ends,
        )
        return found
