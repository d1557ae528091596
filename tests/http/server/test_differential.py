"""Generated requests: never looser than aiohttp's parser and than a strict one (h11), no server error, no traceback."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Iterator

import h11
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser

from sidecar.http.server.fastpath import ListenerCache
from support.parity import Peer, peer

METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"G@T", b"get", b""]
TARGETS = [b"/", b"/a?b=c", b"/%zz", b"*", b"http://a/b", b"/a b", b"//a", b"/\xff", b"/\x00", b"a"]
VERSIONS = [b"HTTP/1.1"] * 8 + [
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"HTTP/3.0",
    b"HTTP/1.10",
    b"",
]
ENDS = [b"\r\n"] * 30 + [b"\n", b"\r", b"\r\r\n"]
HOSTS = [b"a"] * 12 + [b"a:80", b"[::1]:8", b"", b"a b", b"x/y@z", b"a,b", b"a:b:c", b"\xff"]
LINES = [
    b"Content-Length: 0", b"Content-Length: 1", b"Content-Length: 5", b"Content-Length: +1",
    b"Content-Length: 1, 1", b"Content-Length: 0x1", b"Content-Length: \xb2", b"Content-Length:",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", b"Transfer-Encoding:",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, x",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding:\x0bchunked", b"transfer-encoding: CHUNKED",
    b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Upgrade: h2c",
    b"Expect: 100-continue", b"Expect: \xff", b"X: a\x00b", b"X: a\rb", b"X : a", b"X", b": a",
    b" X: a", b"X: " + b"x" * 9000, b"X: \xff\xfe", b"(X): a", b"traceparent: a", b"X-Request-Id: 1",
]  # fmt: skip
BODIES = [
    b"", b"", b"", b"x", b"hello", b"0\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n", b"1;a=b\r\nx\r\n0\r\n\r\n",
    b"1\nx\n0\n\n", b"0_1\r\nx\r\n0\r\n\r\n", b"+1\r\nx\r\n0\r\n\r\n", b"0\r\nT: v\r\n\r\n", b"zz\r\n",
    b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip
GOOD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_LATER = re.compile(rb"HTTP/1\.[2-9]")
_SPOKEN = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def conversations(seed: int, count: int) -> Iterator[list[bytes]]:
    """Bytes of one to three requests each, in one to three pieces."""
    chance = random.Random(seed)
    for _ in range(count):
        data = b""
        for _ in range(chance.randint(1, 3)):
            data += GOOD if chance.random() < 0.3 else _request(chance)
        if chance.random() < 0.1:
            place = chance.randrange(len(data))
            data = data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(0, 2)))
        if _LATER.search(data):
            continue  # served as HTTP/1.1 (RFC 9110 section 2.5), which neither of the others does
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        yield [piece for piece in pieces if piece]


def _request(chance: random.Random) -> bytes:
    end = chance.choice(ENDS)
    method = chance.choice(METHODS[:5]) if chance.random() < 0.9 else chance.choice(METHODS)
    target = b"/" if chance.random() < 0.7 else chance.choice(TARGETS)
    lines = [b" ".join((method, target, chance.choice(VERSIONS)))]
    lines += [b"Host: " + chance.choice(HOSTS)] * chance.choice([1] * 12 + [0, 2])
    lines += chance.sample(LINES, chance.choice([0, 1, 1, 1, 2, 2, 3]))
    return end.join(lines) + 2 * end + chance.choice(BODIES)


def accepted_by_h11(pieces: list[bytes]) -> int:
    """How many requests a strict server would do."""
    server, count, kept = _strict_server(), 0, False
    for piece in pieces:
        try:
            server.receive_data(piece)
            while True:
                event = server.next_event()
                if isinstance(event, h11.Request):
                    count += 1
                    kept = event.http_version == b"1.0" and _keeps(event)
                elif isinstance(event, h11.EndOfMessage):
                    server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                    server.send(h11.EndOfMessage())
                    if server.our_state is not h11.MUST_CLOSE:
                        server.start_next_cycle()
                    elif kept:  # as RFC 9112 section 9.3 has it, which h11 leaves to others
                        rest, _ = server.trailing_data
                        server = _strict_server()
                        if rest:  # no bytes at all would be the end of the connection
                            server.receive_data(rest)
                    else:
                        return count
                elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(
                    event, h11.ConnectionClosed
                ):
                    break
        except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            # Empty lines before a request are to be ignored (RFC 9112 section 2.2), and h11 does not.
            return 1 << 30 if "no request line" in str(error) else count
    return count


def _strict_server() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)


def _keeps(request: h11.Request) -> bool:
    return (b"connection", b"keep-alive") in request.headers


def accepted_by_aiohttp(pieces: list[bytes]) -> int:
    """How many requests aiohttp's parser lets through, before it finds a fault."""
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 1 << 16, max_line_size=8190)
    count = 0
    for piece in pieces:
        try:
            count += len(parser.feed_data(piece)[0])
        except Exception:  # noqa: BLE001 (whatever it finds is a fault)
            break
    return count


async def answered(one: Peer, pieces: list[bytes]) -> tuple[int, list[int]]:
    """How many requests were done, and all statuses."""
    codes = [int(code) for code in _SPOKEN.findall((await one.talk(pieces, eager=False)).written)]
    return len([code for code in codes if code in (200, 404, 405)]), codes


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text="x", headers={"X-Method": request.method})


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (1, 1_500),
        pytest.param(2, 200_000, marks=[pytest.mark.soak, pytest.mark.timeout(3_600)]),
    ],
)
async def test_nothing_is_taken_for_a_request_that_is_none(
    caplog: pytest.LogCaptureFixture, seed: int, count: int
) -> None:
    """Two requests a conversation; what is done is done by the strict parser and by aiohttp's as well."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hello)
    looser, failed, done = [], [], 0
    async with peer(app, ListenerCache()) as one:
        with caplog.at_level(logging.ERROR):
            for pieces in conversations(seed, count):
                ours, codes = await answered(one, pieces)
                done += len(codes)
                if ours > min(accepted_by_h11(pieces), accepted_by_aiohttp(pieces)):
                    looser.append(pieces)
                if any(code >= 500 and code not in (501, 505) for code in codes):
                    failed.append((pieces, codes))
    print(f"{count} conversations, {done} answers: {len(looser)} looser, {len(failed)} failed")
    assert looser[:3] == []
    assert failed[:3] == []
    assert [record.getMessage() for record in caplog.records] == []
