"""Two servers that must not differ: requests for both, byte by byte, without a network in between.

The protocol of a connection is driven by hand: what it is given, when, and in which pieces is decided here,
and what it has written is complete as soon as it is idle.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from aiohttp import web

from sidecar.http.server import framing
from sidecar.http.server.fastpath import ListenerCache, counters
from sidecar.http.server.fastpath.protocol import FastPathProtocol
from sidecar.http.server.limits import ConnectionLimiter
from sidecar.http.server.protocol import ServerProtocol

_DATE = re.compile(rb"\r\nDate: [^\r\n]*")


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and closes as a real one does: a moment later."""

    def __init__(self, protocol: ServerProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closed = False
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


@dataclass(frozen=True)
class Outcome:
    """What a client can see: all bytes but the dates, and whether the connection is open."""

    written: bytes
    closed: bool
    at_once: int = field(default=0, compare=False)
    """How many pieces had their answer before aiohttp was given the first."""


class Observed(FastPathProtocol):
    """A connection that notes when aiohttp gets something for the first time."""

    __slots__ = ("at_once", "before")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.before = by_the_fast_path()
        self.at_once: int | None = None
        super().connection_made(transport)

    def _fall_back(self, data: bytes) -> None:
        if self.at_once is None:
            self.at_once = by_the_fast_path() - self.before
        super()._fall_back(data)

    def all_at_once(self) -> int:
        """How many answers the fast path has given before that."""
        return by_the_fast_path() - self.before if self.at_once is None else self.at_once


@dataclass
class Peer:
    """One application, and how to talk to it."""

    server: web.Server
    guard: ConnectionLimiter
    cache: ListenerCache | None

    def connect(self) -> Wire:
        loop = asyncio.get_running_loop()
        options: Any = {"loop": loop, "keepalive_timeout": 75.0, "max_line_size": 8190}
        connection = (
            ServerProtocol(self.server, self.guard, **options)
            if self.cache is None
            else Observed(self.server, self.guard, self.cache, **options)
        )
        connection._lingering_time = 0.0
        wire = Wire(connection)
        connection.connection_made(wire)
        return wire

    async def talk(self, pieces: Sequence[bytes], *, eager: bool, after: int = 0) -> Outcome:
        """Send the pieces, `eager`: without waiting for answers in between, but for those to the first, `after` them.

        Of a pipeline, aiohttp answers more or less in front of a malformed request by how many others wait.
        """
        wire = self.connect()
        if not eager:
            await settled(wire)
        for number, piece in enumerate(pieces):
            if wire.closed:
                break
            wire.protocol.data_received(piece)
            if not eager or number < after:
                await settled(wire)
        await settled(wire)
        one = wire.protocol
        at_once = one.all_at_once() if isinstance(one, Observed) else 0
        outcome = Outcome(_DATE.sub(b"", bytes(wire.written)), wire.closed, at_once)
        wire.close()
        await settled(wire)
        return outcome


async def settled(wire: Wire) -> None:
    """Wait until all that was received is answered, or waits for bytes that are missing."""
    one = wire.protocol
    for turn in range(10_000):
        # What goes to the disk takes longer than some turns of the loop.
        await asyncio.sleep(0 if turn < 100 else 0.0005)
        if wire.closed:
            if one._task_handler is None:
                return
        elif one._waiter is not None and not one._waiter.done() and not one.busy:
            return
        elif one._request_in_progress and one._body is not None and not one._body.is_eof():
            return  # the handler waits for a body
    raise TimeoutError(f"not idle: {one!r} {bytes(wire.written)[:200]!r}")


@asynccontextmanager
async def peer(app: web.Application, cache: ListenerCache | None) -> Any:
    """Run an application for `Peer.talk`."""
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    framing.enforce(runner.server)
    try:
        yield Peer(
            runner.server, ConnectionLimiter(head_timeout=60.0, max_connections=10_000), cache
        )
    finally:
        await runner.cleanup()


def by_the_fast_path() -> int:
    """How many answers this process has given without aiohttp."""
    return sum(count.value for count in counters._COUNTS.values())


def dates_removed(data: bytes) -> bytes:
    return _DATE.sub(b"", data)


def date_of(data: bytes) -> datetime:
    """Return the time that an answer says it is of."""
    found = _DATE.search(data)
    assert found is not None
    return parsedate_to_datetime(found[0].partition(b": ")[2].decode())


#: Each vector of aiohttp's advisories that can be put into bytes, and what every proxy fears.
VECTORS: tuple[bytes, ...] = (
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",  # CVE-2023-37276
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nb: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",  # CVE-2023-47641
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",  # CVE-2024-52304
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: v\r\n\r\n",  # CVE-2025-53643
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0_2\r\nxx\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",  # CVE-2023-47627
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n0123456789",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xd9\xa1\r\n\r\nx",  # CVE-2025-69224
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET ",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",  # CVE-2026-34525
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: a\x01b\r\n\r\n",
    b"GET / HTTP/1.1\r\ntraceparent: a\r\nb3: c\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: a\nX: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n(X): a\r\n\r\n",  # CVE-2024-23829
    b"GET / HTTP/1.1\r\nHost: a\r\nX\x0b: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"GET /\r\n",
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / http/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1",
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /files/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nExpect: other\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nExpect: \xe7\r\n\r\n",  # aiohttp 3.14.5: an error in its own answer
    b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nxx",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
    b"GET /raw HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n",
    b'GET /raw HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\nIf-Range: "x"\r\n\r\n',
    b"GET /raw HTTP/1.1\r\nHost: a\r\nRange: bytes=9999-\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b; a\xff=\x80\r\n\r\n",  # CVE-2025-69230
    b"GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\n\r\n",
    b'GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: "\xff"\r\n\r\n',
    b"GET / HTTP/1.1\r\nHost: a\r\nIf-Match: nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip, br\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nPrefer: wait=x\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /raw HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /?a=b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9\r\n\r\n--x\r\nA: b",  # CVE-2024-30251
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: deflate\r\nContent-Length: 3\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 140 + b"\r\n",  # CVE-2026-22815
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",  # CVE-2026-54277
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 40,  # CVE-2026-54273
)

GOOD: tuple[bytes, ...] = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: x/1\r\nAccept: */*\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nAccept: */*\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1, 10.0.0.2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: TAG\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /files/config HTTP/1.1\r\nHost: a\r\n\r\n",
)

_ALPHABET = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b"\xff", b"\x80", b"0", b"5", b"/", b"%", b"GET ", b"HEAD ",
    b"HTTP/1.0", b"HTTP/1.1", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: a\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Range: bytes=0-0\r\n",
    b"traceparent: 00-1\r\n", b"X-Request-Id: 5\r\n", b"Host: b\r\n", b" folded\r\n", b"b3: ", b"x-real-ip: 1",
]  # fmt: skip


#: Writes that are fit for the fast path, and those that only look like it.
WRITES: tuple[bytes, ...] = (
    *(b"GET /?content=%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(20)),
    *(
        b"GET /?content=%s HTTP/1.1\r\nHost: a\r\n\r\n" % value
        for value in (
            b"",
            b"a+b",
            b"%20%2B+%26%3D%23%25",
            b"%c3%a9%E2%82%AC",
            b"%00",
            b"-._~!$'()*,/:=?@",
            b"a=b=c",
            b"?content=x",
            b"x" * 3000,
            b"%41" * 500,
        )
    ),
    b"GET /?content=5 HTTP/1.1\r\nHost: a\r\nUser-Agent: x/1\r\nAccept: */*\r\n\r\n",
    b"GET /?content=6 HTTP/1.1\r\nHost: a\r\nUser-Agent: x/1\r\nAccept: */*\r\n\r\n",
    b"GET /?content=7 HTTP/1.1\r\nHost: a\r\ntraceparent: 00-1\r\nAccept: */*\r\n\r\n",
    b"GET /?content=8 HTTP/1.1\r\nHost: a\r\ntraceparent: 00-22\r\nAccept: */*\r\n\r\n",
    b"GET /?content=9 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET /?content=10 HTTP/1.1\r\nHost: a\r\nSec-Fetch-Site: same-origin\r\n\r\n",
)
NO_WRITES: tuple[bytes, ...] = (
    *(
        b"GET /?%s HTTP/1.1\r\nHost: a\r\n\r\n" % query
        for query in (
            b"content=%zz",
            b"content=%",
            b"content=%4",
            b"content=%ff",
            b"content=%C3",
            b"content=\xc3\xa9",
            b"content=\xff",
            b"content=a b",
            b"content=a;b",
            b'content="a"',
            b"content=a#b",
            b"content=a%0d%0aX",
            b"content=1&content=2",
            b"content=3&dry_run=1",
            b"dry_run=1&content=3",
            b"content=3&dry_run=maybe",
            b"a=b&content=4",
            b"%63ontent=1&?content=5",
            b"?content=5",
            b"a?content=5",
            b"a&?content=5",
            b"content",
            b"Content=5",
            b"content%3D5",
            b"",
        )
    ),
    *(
        b"GET /?content=11 HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % line
        for line in (
            b"If-None-Match: *",
            b"If-Match: *",
            b"If-Match: TAG",
            b"If-Match: nonsense",
            b"If-Unmodified-Since: Sun, 06 Nov 2044 08:49:37 GMT",
            b"Prefer: wait=1",
            b"Sec-Fetch-Site: cross-site",
            b"Sec-Purpose: prefetch",
            b"Purpose: prefetch",
            b"Connection: close",
            b"Expect: 100-continue",
            b"Expect: other",
            b"Content-Length: 0",
            b"Content-Length: 3\r\n\r\nabc",
            b"Transfer-Encoding: chunked\r\n\r\n0",
            b"Connection: upgrade\r\nUpgrade: h2c",
            b"Authorization: Bearer x",
            b"Range: bytes=0-1",
            b"Host: b",
            b"traceparent: 00-1\r\n folded",
            b"X: " + b"y" * 9000,
        )
    ),
    b"GET /?content=" + b"z" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /?content=12 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /?content=12 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"GET /?content=12 HTTP/1.0\r\n\r\n",
    b"GET /?content=12 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /?content=12 HTTP/1.1\r\n\r\n",
    b"GET /?content=12 HTTP/1.1\nHost: a\n\n",
    b"GET /x?content=12 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //?content=12 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://b/?content=12 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET ?content=12 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PUT /files/config HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nput",
    b"DELETE /files/config HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /?content=13 HTTP/1.1\r\nHost: a\r\n\r\n" * 40,
)


def conversations(
    seed: int,
    count: int,
    etag: str,
    good: Sequence[bytes] = GOOD,
    vectors: Sequence[bytes] = VECTORS,
) -> Iterator[tuple[list[bytes], bool]]:
    """Yield so many conversations: pieces to send, and whether to send them without waiting."""
    chance = random.Random(seed)
    known = [one.replace(b"TAG", etag.encode()) for one in good]
    strange = [one.replace(b"TAG", etag.encode()) for one in vectors]
    for _ in range(count):
        said = [_one(chance, known, strange) for _ in range(chance.choice((1, 1, 2, 2, 3, 5)))]
        if chance.random() < 0.3:
            said *= 3  # what is kept is kept at the second time, and found at the third
        if chance.random() < 0.5:
            said.append(chance.choice(known))
        yield _cut(chance, said), chance.random() < 0.4


def _one(chance: random.Random, known: Sequence[bytes], strange: Sequence[bytes]) -> bytes:
    draw = chance.random()
    if draw < 0.08:  # the beginning of the next one in the same piece
        return chance.choice(known) + chance.choice(known)[: chance.randrange(1, 40)]
    if draw < 0.45:
        return chance.choice(known)
    base = chance.choice(strange) if draw < 0.65 else chance.choice(known)
    return base if draw < 0.55 else _mutated(chance, base)


def _mutated(chance: random.Random, request: bytes) -> bytes:
    data = bytearray(request)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at:at] = chance.choice(_ALPHABET)
            case 1:
                del data[at : at + chance.choice((1, 1, 2, 8))]
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 3:  # at the beginning of a line
                line = data.find(b"\r\n", at)
                data[line + 2 : line + 2] = chance.choice(_ALPHABET)
            case _:
                data[at : at + 4] = data[: chance.randrange(1, 24)]
    return bytes(data)


def _cut(chance: random.Random, said: list[bytes]) -> list[bytes]:
    """Cut a conversation: as it is, all in one, at a few places, or after each byte."""
    whole = b"".join(said)
    match chance.randrange(6):
        case 0 | 1 | 2:
            return said
        case 3:
            return [whole]
        case 4:
            cuts = sorted(chance.sample(range(len(whole) + 1), min(len(whole), 3)))
            ends = [*cuts, len(whole)]
            return [p for p in (whole[a:b] for a, b in zip([0, *cuts], ends, strict=True)) if p]
        case _:
            if len(whole) > 600:
                return said
            return [whole[at : at + 1] for at in range(len(whole))]
