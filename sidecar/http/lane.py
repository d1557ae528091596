"""The express lane: a request that was answered before, byte for byte, is answered again without a thought.

A reader serves one content to clients that ask in the same words each time.
So the complete bytes of a request are remembered, and with them the complete bytes that aiohttp has answered,
until something changes: the content, its staleness, the process that begins to drain.
What is remembered has been parsed, checked and answered by aiohttp at the same place;
the lane itself understands nothing of HTTP, so it cannot understand it differently.

    handler            says that an answer depends on nothing but the request and what `forget` is called for
    Connection         asks for an answer while no request is under way, and hands in what aiohttp has sent
    Lane               keeps them, within bounds, and sets `Date` anew each second (RFC 9110 section 6.6.1)

A writer is sent another content each time. There all but the value of `content` is remembered,
as a form whose answer differs in nothing but `ETag` and `Date`, and the value is taken only
if it is made of signs that mean nothing but themselves, wherever they stand in it:

    handler            says `offer_writes`: what would publish another value in the place of this one
    Connection         lets it be published, and holds back what else comes until it has ended
    Lane               fills in the answer

Where that ends in any other way than well, aiohttp gets the request after all, and its handler the outcome
(`outcome_of`), in the place of publishing a second time: what it then answers needs no code of its own.

Those who wait for a change mostly have the same content and ask in the same words. The first two wait in aiohttp,
and the second opens a room for all others: there a connection is an entry in a table, without a task or a handler.
When something has changed aiohttp answers the first, and the others get the same bytes:

    handler            says `room_for`, for as long as what is there is not new to those words
    Connection         enters it, and holds back what else comes
    Lane               keeps the rooms, and knows the answer when it has been given once

What is left out, because an answer could differ from one time to the next or does not end with the request:
a request that shows a token, expects, upgrades, has a body or asks for a range;
an application with a middleware or a signal that is not ours, for it may want to see each request.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import weakref
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from aiohttp.http import HttpVersion11

from sidecar.http import memfile
from sidecar.http.memfile import MemoryFile
from sidecar.runtime import metrics

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_request import BaseRequest

    from sidecar.volume.commit import Outcome

#: Bounds of what is remembered: a client that asks in ever new words must not fill the memory.
_MOST_ANSWERS = 1024
_MOST_BYTES = 4 << 20
_MOST_SEEN = 4096
_MOST_FORMS = 128
_MOST_ROOMS = 128
_LONGEST_REQUEST = 4 << 10
_LONGEST_ANSWER = 1 << 20
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
_DATE_LENGTH = len("Sun, 06 Nov 1994 08:49:37 GMT")
#: The value of `content` may be made of these: what the query of an address may hold (RFC 3986 section 3.4),
#: without `&` and `;`, at which some divide it. Whether the escapes are right, the handler's own code says.
_VALUE: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$'()*+,/:=?@%"
_BEFORE_VALUE: Final = b"?content="
_AFTER_VALUE: Final = b" HTTP/1.1\r\n"
_TRANSPARENT = "_sidecar_transparent"

_M = TypeVar("_M")


class _Answer(NamedTuple):
    """The bytes before and after the value of `Date`, and where it is counted."""

    before: bytes
    after: bytes
    counter: _Count


class _Count:
    """How many answers of one code the lane has given. It only grows, and another thread may read it."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


Wire: TypeAlias = "tuple[bytes | MemoryFile, _Count, float]"
"""A complete answer, where it is counted, and until when its `Date` holds, by the clock of the loop."""

Write: TypeAlias = "Callable[[bytes, Callable[[Outcome], None]], Callable[[], None] | None]"
"""Publishes the value of `content` as it stands in an address, and tells what became of it, once, later.

Returns what withdraws it; None if it cannot be done in this way, and nothing has begun."""


class Guest(Protocol):
    """Who waits in a room."""

    def look_again(self, limit: float) -> None:
        """Something may have changed, or `limit` is over: until then, by the clock of the loop, it may wait."""


class Room(Protocol):
    """Where those wait who have asked in the same words for something newer than they have."""

    def enter(self, guest: Guest) -> bool:
        """Wait from now on; False if what is there now may be new, so that aiohttp must be asked."""

    def leave(self, guest: Guest) -> None:
        """Wait no longer."""

    def close_if_empty(self) -> bool:
        """Give the place to another room, if nobody is in it."""


MakeRoom: TypeAlias = "Callable[[Callable[[], bool], Callable[[], object]], Room]"
"""Makes a room, told how to see whether the answer to those words is known, and what to call when it closes."""


class Form(NamedTuple):
    """The answer to a write, around the values of `ETag` and `Date`, and what publishes another content."""

    write: Write
    before: bytes
    between: bytes
    after: bytes
    counter: _Count


class Lane:
    """Answers by the complete bytes of their request, of one place that is listened at.

    One place: the same bytes may mean something else at another port, with or without TLS.
    """

    def __init__(self) -> None:
        self._answers: dict[bytes, _Answer] = {}
        self.wires: dict[bytes, Wire] = {}
        """What can be written as it is, in this second. It stays the same object, and is emptied."""
        self._forms: dict[tuple[bytes, bytes], Form] = {}
        self._form_date = b""
        self._seen: set[int] = set()
        self._bytes = 0
        self._tick: asyncio.TimerHandle | None = None
        self._second_ends = 0.0
        self._rooms: dict[bytes, Room] = {}
        self._told: Lane | None = None
        _ALL.add(self)

    def __repr__(self) -> str:
        forms = f" forms={len(self._forms)}" if self._forms else ""
        return f"<Lane answers={len(self._answers)} bytes={self._bytes}{forms}>"

    @property
    def ticking(self) -> bool:
        """Whether a timer will clear what is dated: only after an answer, never at rest."""
        return self._tick is not None

    @property
    def told(self) -> Lane:
        """The answers to those who have waited: they say that they were late (`Preference-Applied`)."""
        if self._told is None:
            self._told = Lane()
        return self._told

    def find(self, request: bytes) -> bytes | MemoryFile | None:
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

    def keep(
        self, data: bytes, request: BaseRequest, response: web.Response, generation: int
    ) -> None:
        """Remember what aiohttp has sent for these bytes, unless something has changed meanwhile.

        That is done at the second time: what is asked for once is not worth the memory.
        """
        if (
            generation != _Now.generation
            or len(data) > _LONGEST_REQUEST
            or not _can_be_kept(request, response)
        ):
            return
        answer = _wire(request, response)
        if answer is None:
            return
        key = _key(data)
        if key in self._answers or not self._is_known(key):
            return
        size = len(key) + len(answer.before) + len(answer.after)
        if self._bytes + size > _MOST_BYTES or len(self._answers) >= _MOST_ANSWERS:
            self.clear()
        self._answers[key] = answer
        self._bytes += size

    def find_form(self, request: bytes) -> tuple[Form, bytes] | None:
        """Return the form that these bytes fill, and the value of `content` in them; None: ask aiohttp."""
        if not self._forms or (parts := _divide(request)) is None:
            return None
        before, value, after = parts
        form = self._forms.get((before, after)) or self._forms.get((before, _key(after)))
        return None if form is None else (form, value)

    def fill(self, form: Form, etag: str) -> bytes:
        """Return the complete answer to a write that has ended well, dated now, and count it."""
        if not self._form_date:
            self._form_date = self._dated_now()
        form.counter.number += 1
        return b"".join((form.before, etag.encode(), form.between, self._form_date, form.after))

    def keep_form(
        self, data: bytes, request: BaseRequest, response: web.Response, write: Write
    ) -> None:
        """Remember what aiohttp has answered to a write, and all of it but the content, at the second time.

        Nothing that changes is in it, so it need not be forgotten; what it publishes with lives as long as the server.
        """
        parts = _divide(data)
        if parts is None or request.method != "GET" or response.status != 200:
            return
        before, _, after = parts
        key = (before, _key(after))
        if (
            key in self._forms
            or len(before) + len(after) > _LONGEST_REQUEST
            or not _can_be_kept(request, response)
            or (form := _form(request, response, write)) is None
            or not self._is_known(b"".join(key))
        ):
            return
        if len(self._forms) >= _MOST_FORMS:
            self._forms.clear()
        self._forms[key] = form

    def room(
        self, data: bytes, request: BaseRequest, make: MakeRoom, instead: tuple[str, str] | None
    ) -> Room | None:
        """Return where others wait who ask for something newer with these bytes: made at the second time.

        Or with these bytes but for one word, which is `instead` of another: they will be many, if those were.
        None: there is none.
        """
        if len(data) > _LONGEST_REQUEST or not _is_plain(request):
            return None
        key = _key(data)
        many = self._is_known(key)
        if instead is not None:
            new, old = (word.encode() for word in instead)
            if key.count(old) != 1:
                return None
            key = key.replace(old, new)
        room = self._rooms.get(key)
        if room is None and many and self._has_room():
            room = make(partial(self.told.knows, key), partial(self._rooms.pop, key))
            self._rooms[key] = room
        return room

    def find_room(self, request: bytes) -> tuple[Room, bytes] | None:
        """Return where to wait with these bytes, and the bytes as they are kept there; None: ask aiohttp."""
        if not self._rooms:
            return None
        key = _key(request)
        room = self._rooms.get(key)
        return None if room is None else (room, key if key == request else request)

    def _has_room(self) -> bool:
        """Whether one more may be made, if need be in the place of one in which nobody is."""
        if len(self._rooms) >= _MOST_ROOMS:
            for room in list(self._rooms.values()):
                if room.close_if_empty():
                    return True
        return len(self._rooms) < _MOST_ROOMS

    def clear(self) -> None:
        """Forget every answer."""
        self._answers.clear()
        self.wires.clear()
        self._bytes = 0

    def _date(self, request: bytes) -> Wire | None:
        key = _key(request)
        found = self.wires.get(key)
        if found is not None:
            return found
        answer = self._answers.get(key)
        if answer is None:
            return None
        found = self.wires[key] = (
            memfile.held(answer.before + self._dated_now() + answer.after),
            answer.counter,
            self._second_ends,
        )
        return found

    def _dated_now(self) -> bytes:
        """Return the value of `Date`, which is the same until `_next_second`."""
        now = time.time()
        if self._tick is None:
            # Armed by the first answer of a second, and by that alone: at rest nobody is woken.
            loop = asyncio.get_running_loop()
            self._second_ends = loop.time() + 1.0 - now % 1.0
            self._tick = loop.call_at(self._second_ends, self._next_second)
        return formatdate(int(now), usegmt=True).encode()

    def _next_second(self) -> None:
        self._tick = None
        self.wires.clear()
        self._form_date = b""

    def _is_known(self, key: bytes) -> bool:
        mark = hash(key)
        if mark in self._seen:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(mark)
        return False


class _Now:
    """Grows with each `forget`: an answer that was begun before it is not kept after it."""

    generation = 0


_ALL: weakref.WeakSet[Lane] = weakref.WeakSet()
_COUNTS: dict[str, _Count] = {}
_handed_in: dict[str, int] = {}
_handing_in = threading.Lock()


def generation() -> int:
    """Return the number of the present state of everything: ask before looking at what is answered with."""
    return _Now.generation


def forget() -> None:
    """Forget every answer of this process: something that they depend on has changed."""
    _Now.generation += 1
    for lane in list(_ALL):
        lane.clear()


def count(code: str) -> None:
    """Count an answer that was given without aiohttp."""
    _COUNTS.setdefault(code, _Count()).number += 1


def offer(request: web.Request, generation: int, *, waited: bool = False) -> None:
    """Say, in a handler, that its answer depends on nothing but the request's bytes and what `forget` is called for.

    Or on whether it had `waited` besides: then it is the answer to those who have waited in a room.
    `generation` is that of before the handler looked at what it answers with.
    It is not taken up where an application around the handler has a middleware or a signal of its own.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "offered") and all(map(_is_ours, request.match_info.apps)):
        protocol.offered = generation
        protocol.waited = waited


def offer_writes(request: web.Request, write: Write) -> None:
    """Say, in a handler, that another value of `content` in this request would do nothing but `write` it.

    The answer to a write that ends well depends on nothing else, and differs in its `ETag` alone.
    It is not taken up where an application around the handler has a middleware or a signal of its own.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "offered") and all(map(_is_ours, request.match_info.apps)):
        protocol.offered = write


def room_for(request: web.Request, make: MakeRoom, instead: tuple[str, str] | None) -> Room | None:
    """Return, in a handler, the room of all who wait and ask in the same words; None if there can be none.

    It is for a handler that would look again at nothing but a change that its room is told of, too.
    `instead` is the one word that is another in theirs, and that in the place of which it stands.
    Not where an application around the handler has a middleware or a signal of its own.
    """
    protocol: Any = request.protocol
    if hasattr(protocol, "room_for") and all(map(_is_ours, request.match_info.apps)):
        room: Room | None = protocol.room_for(request, make, instead)
        return room
    return None


def limit_of(request: web.Request) -> float | None:
    """Return, in a handler, until when this very request may wait, because it has waited elsewhere already."""
    limit: float | None = getattr(request.protocol, "limit", None)
    return limit


def outcome_of(request: web.Request) -> Outcome | None:
    """Return, in a handler, what became of this very request already; None: it is for the handler to do it."""
    outcome: Outcome | None = getattr(request.protocol, "outcome", None)
    return outcome


def transparent(middleware: _M) -> _M:
    """Mark a middleware that does nothing to an answer that a handler has offered."""
    setattr(middleware, _TRANSPARENT, True)
    return middleware


def _is_ours(app: web.Application) -> bool:
    return not app.on_response_prepare and all(
        getattr(middleware, _TRANSPARENT, False) for middleware in app.middlewares
    )


def _can_be_kept(request: BaseRequest, response: web.Response) -> bool:
    return response.status in (200, 304) and response.keep_alive is True and _is_plain(request)


def _is_plain(request: BaseRequest) -> bool:
    return (
        request.method in ("GET", "HEAD")
        and request.version == HttpVersion11
        and request.keep_alive
        and not any(name in request.headers for name in _NEVER)
    )


def _wire(request: BaseRequest, response: web.Response) -> _Answer | None:
    """Return a response as aiohttp has written it, around the value of `Date`; None if that cannot be known.

    The number of bytes that aiohttp has counted proves it: nothing was sent besides, and nothing in another form.
    """
    body = response.body if request.method != "HEAD" and response.status == 200 else None
    if not isinstance(body, bytes | None) or len(body or b"") > _LONGEST_ANSWER:
        return None
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    before, found, after = "\r\n".join(lines).partition("\r\nDate: ")
    answer = _Answer(
        (before + found).encode(),
        after[_DATE_LENGTH:].encode() + b"\r\n\r\n" + (body or b""),
        _COUNTS.setdefault(str(response.status), _Count()),
    )
    sent = len(answer.before) + _DATE_LENGTH + len(answer.after)
    return answer if found and sent == response.body_length else None


def _form(request: BaseRequest, response: web.Response, write: Write) -> Form | None:
    """Return the answer to a write with two places left open; None if it has not got them."""
    wire, tag = _wire(request, response), response.headers.get("ETag")
    if wire is None or tag is None:
        return None
    before, found, between = wire.before.partition(f"\r\nETag: {tag}\r\n".encode())
    if not found:
        return None
    return Form(write, before + b"\r\nETag: ", b"\r\n" + between, wire.after, wire.counter)


def _divide(request: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Return what stands before the value of `content`, the value, and what follows it; None if it is not alone."""
    query, end = request.find(b"?"), request.find(_AFTER_VALUE)
    if not request.startswith(_BEFORE_VALUE, query):
        return None
    start = query + len(_BEFORE_VALUE)
    value = request[start:end]
    if end < start or value.translate(None, _VALUE):
        return None
    return request[:start], value, request[end:]


def _key(request: bytes) -> bytes:
    """Return the request without the lines that change nothing."""
    if (
        len(request) > _LONGEST_REQUEST
        or not request.endswith(b"\r\n\r\n")
        or request.count(b"\r\n\r\n") != 1
        or request.count(b"\r\n") > _MOST_LINES
    ):
        return request
    return _HARMLESS.sub(b"", request)


def _hand_in_counts() -> None:
    """Add to the metrics what was counted here, where one more call a request would be felt.

    It runs in a thread beside the loop that counts: the numbers only grow, and are never taken away from it.
    """
    with _handing_in:
        for code, count in list(_COUNTS.items()):
            number = count.number
            metrics.HTTP_REQUESTS_TOTAL.labels(code).inc(number - _handed_in.get(code, 0))
            _handed_in[code] = number


metrics.before_scrape(_hand_in_counts)
