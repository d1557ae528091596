"""The express lane: a request that was answered before, byte for byte, is answered again without a thought.

A reader serves one content to clients that ask in the same words each time.
So the complete bytes of a request are remembered, and with them the complete bytes that aiohttp has answered,
until something changes: the content, its staleness, the tokens, the process that begins to drain.
What is remembered has been parsed, checked and answered by aiohttp on a connection of the same kind;
the lane itself understands nothing of HTTP, so it cannot understand it differently.

    handler            says that an answer depends on nothing but the request and what `forget` is called for
    Connection         asks for an answer while no request is under way, and hands in what aiohttp has sent
    Lane               keeps them, within bounds, and sets `Date` anew each second (RFC 9110 section 6.6.1)
"""

from __future__ import annotations

import time
from collections import Counter
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple

from sidecar.runtime import metrics

if TYPE_CHECKING:
    from aiohttp import web

#: Bounds of what is remembered: a client that asks in ever new words must not fill the memory.
_MOST_ANSWERS = 1024
_MOST_BYTES = 8 << 20
_LONGEST_REQUEST = 4 << 10
_LONGEST_ANSWER = 1 << 20


class _Answer(NamedTuple):
    """The bytes before and after the value of `Date`, and what to count."""

    before: bytes
    after: bytes
    code: str


class Lane:
    """Answers by the complete bytes of their request."""

    def __init__(self) -> None:
        self.generation = 0
        """Grows with each `forget`: an answer that was begun before it is not kept after it."""
        self._answers: dict[bytes, _Answer] = {}
        self._wires: dict[bytes, tuple[bytes, str]] = {}
        self._second = 0
        self._bytes = 0
        self._counts: Counter[str] = Counter()
        metrics.before_scrape(self._hand_in_counts)

    def __repr__(self) -> str:
        return f"<Lane answers={len(self._answers)} bytes={self._bytes}>"

    def find(self, request: bytes) -> bytes | None:
        """Return the complete answer to these bytes, dated now, and count it; None: ask aiohttp."""
        now = int(time.time())
        if now != self._second:
            self._wires.clear()
            self._second = now
        found = self._wires.get(request)
        if found is None:
            found = self._date(request, now)
            if found is None:
                return None
        wire, code = found
        self._counts[code] += 1
        return wire

    def keep(self, request: bytes, response: web.Response, generation: int) -> None:
        """Remember what aiohttp has sent for these bytes, unless something changed meanwhile."""
        body = response.body if isinstance(response.body, bytes) else b""
        room = self._bytes + len(request) + len(body) <= _MOST_BYTES
        if (
            generation != self.generation
            or not room
            or len(self._answers) >= _MOST_ANSWERS
            or len(request) > _LONGEST_REQUEST
            or len(body) > _LONGEST_ANSWER
        ):
            return
        before, after = _wire(response, b"" if request.startswith(b"HEAD ") else body)
        self._answers[request] = _Answer(before, after, str(response.status))
        self._bytes += len(request) + len(before) + len(after)

    def forget(self) -> None:
        """Forget every answer: something that they depended on has changed."""
        self.generation += 1
        self._answers.clear()
        self._wires.clear()
        self._bytes = 0

    def _date(self, request: bytes, now: int) -> tuple[bytes, str] | None:
        answer = self._answers.get(request)
        if answer is None:
            return None
        date = formatdate(now, usegmt=True).encode()
        wire = self._wires[request] = (answer.before + date + answer.after, answer.code)
        return wire

    def _hand_in_counts(self) -> None:
        """Add to the metrics what was counted here, where one more call a request would be felt."""
        counts, self._counts = self._counts, Counter()
        for code, count in counts.items():
            metrics.HTTP_REQUESTS_TOTAL.labels(code).inc(count)


def _wire(response: web.Response, body: bytes) -> tuple[bytes, bytes]:
    """Return a sent response as aiohttp writes it, without the value of `Date`."""
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items() if name != "Date"]
    head = "\r\n".join(lines).encode() + b"\r\nDate: "
    return head, b"\r\n\r\n" + body


LANE = Lane()
"""The lane of this process."""


def offer(request: web.Request, generation: int) -> None:
    """Say, in a handler, that its answer depends on nothing but the request's bytes and what `forget` is called for.

    `generation` is the lane's from before the handler looked at what it answers with.
    A request that shows a token is never remembered: each time, the token is asked for anew.
    """
    protocol = request.protocol
    if hasattr(protocol, "offered") and "Authorization" not in request.headers:
        protocol.offered = generation
