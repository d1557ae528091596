"""The fast path and aiohttp cannot be told apart, and what the fast path remembers is never out of date."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from sidecar.http import handler_api
from sidecar.http.apps.files import files_app
from sidecar.http.apps.reader import reader_app
from sidecar.http.semantics import representation
from sidecar.http.server.fastpath import ListenerCache, request_key, response_cache
from sidecar.http.server.protocol import ServerProtocol
from sidecar.process import lifecycle, metrics
from support import Eventually
from support.httpkit import Serve, place, problem, tag
from support.parity import (
    GOOD,
    VECTORS,
    Peer,
    by_the_fast_path,
    conversations,
    date_of,
    dates_removed,
    peer,
    settled,
)

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
Pair = tuple[Peer, Peer]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file with a content."""
    return place(tmp_path / "shared" / "config", "123")


@pytest_asyncio.fixture
async def fast(config: Path) -> AsyncIterator[Peer]:
    """A reader with the fast path."""
    async with peer(reader_app(config), ListenerCache()) as one:
        yield one


@pytest_asyncio.fixture
async def both(fast: Peer, config: Path) -> AsyncIterator[Pair]:
    """A reader with the fast path, and one without, of the same file."""
    async with peer(reader_app(config), None) as plain:
        yield fast, plain


FAILED = re.compile(rb"HTTP/1\.[01] 50[^15]")
"""A server error; 501 and 505 say that the request asks for what is not spoken here."""


async def differences(pair: Pair, *, seed: int, count: int, etag: str) -> list[object]:
    """Return the conversations in which a client could tell one from the other, at most five."""
    fast, plain = pair
    found: list[object] = []
    for pieces, eager in conversations(seed, count, etag):
        one = await fast.talk(pieces, eager=eager)
        other = await plain.talk(pieces, eager=eager, after=one.at_once)
        if one != other or FAILED.search(one.written):
            found.append((pieces, eager, one, other))
            if len(found) == 5:
                break
    return found


@pytest.mark.slow
async def test_no_conversation_tells_the_fast_path_from_aiohttp(
    both: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Some 10,000 generated requests: the same bytes but for dates, the same end, no 5xx, nothing in the log."""
    before = by_the_fast_path()
    with caplog.at_level(logging.INFO):
        assert await differences(both, seed=1, count=4_000, etag=tag("123")) == []
    answered = by_the_fast_path() - before
    assert answered > 1_000, "the fast path has answered too little for that to mean anything"
    assert caplog.records == []


@pytest.mark.soak
async def test_no_conversation_of_many_tells_the_fast_path_from_aiohttp(
    both: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Some 100,000 requests, others each time; the seed is in the failure."""
    seed = int.from_bytes(os.urandom(4))
    with caplog.at_level(logging.INFO):
        assert (seed, await differences(both, seed=seed, count=40_000, etag=tag("123"))) == (
            seed,
            [],
        )
    assert caplog.records == []


@pytest.mark.parametrize("vector", [*VECTORS, *GOOD], ids=lambda vector: repr(vector[:60]))
async def test_each_known_attack_is_answered_as_aiohttp_does_it(both: Pair, vector: bytes) -> None:
    """Three times, so that it is in the fast path if it can be; whole, and cut after each byte."""
    fast, plain = both
    expected = await plain.talk([vector] * 3 + [ASK], eager=False)
    for _ in range(2):
        assert await fast.talk([vector] * 3 + [ASK], eager=False) == expected
    if len(vector) < 500:
        bytes_ = [vector[at : at + 1] for at in range(len(vector))] + [ASK, ASK]
        one = await fast.talk(bytes_, eager=True)
        assert one == await plain.talk(bytes_, eager=True, after=one.at_once)


async def test_an_answer_comes_from_the_lane_at_the_third_time(fast: Peer) -> None:
    """With the bytes that aiohttp has sent, and a date of its own."""
    assert fast.cache is not None
    wire = fast.connect()
    for _ in range(2):
        assert fast.cache.find(ASK) is None
        await fast.talk([ASK], eager=False)
    found = fast.cache.find(ASK)
    assert isinstance(found, bytes)
    assert dates_removed(found) == (await fast.talk([ASK], eager=False)).written
    assert b"\r\nDate: " in found
    wire.close()


@pytest.mark.parametrize("target", [b"/", b"/raw", b"/files/config"])
async def test_what_is_sent_in_one_piece_is_remembered_and_what_is_longer_is_not(
    tmp_path: Path, target: bytes
) -> None:
    """Of a long answer a slow client is to hold one piece; the fast path would have all of it written at once."""
    around = len(b'""') if target == b"/" else 0
    for more, known in ((0, True), (1, False)):
        content = b"x" * (representation.CHUNK_SIZE - around + more)
        path = place(tmp_path / str(more) / "config", content)
        async with peer(reader_app(path), ListenerCache()) as one:
            assert one.cache is not None
            ask = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target
            for _ in range(3):
                assert content in (await one.talk([ask], eager=False)).written
            assert (one.cache.find(ask) is not None) is known


async def test_a_request_that_comes_with_its_connection_is_answered_by_the_fast_path(
    fast: Peer,
) -> None:
    """A probe has a connection for each request, and sends it before aiohttp has had a turn."""
    expected = [await fast.talk([ASK], eager=True) for _ in range(2)]
    before = by_the_fast_path()
    assert await fast.talk([ASK], eager=True) == expected[0] == expected[1]
    assert by_the_fast_path() == before + 1


async def test_the_date_of_a_remembered_answer_goes_on(fast: Peer, eventually: Eventually) -> None:
    """RFC 9110 section 6.6.1: the time of the answer, not of the first one. No timer is left while nobody asks."""
    cache = fast.cache
    assert cache is not None
    await fast.talk([ASK] * 2, eager=False)
    first = cache.find(ASK)
    assert isinstance(first, bytes)
    await eventually(lambda: cache.find(ASK) != first, timeout=3.0)
    second = cache.find(ASK)
    assert isinstance(second, bytes)
    assert date_of(second) > date_of(first)
    await eventually(lambda: not cache.date_header.date, timeout=3.0)


@pytest.mark.parametrize("path", ["/", "/raw", "/files/config"])
async def test_the_answers_of_one_connection_come_from_the_lane_again_after_others(
    fast: Peer, path: str
) -> None:
    """A request in two pieces, one with a body, two at once: after each the fast path is back."""
    assert fast.cache is not None
    ask = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    await fast.talk([ask] * 3, eager=False)
    wire = fast.connect()
    for others in (
        [ask[:9], ask[9:]],
        [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", ask],
        [ask + ask],
        [b"\r\n" + ask],
    ):
        for piece in others:
            await settled(wire)
            wire.protocol.data_received(piece)
        await settled(wire)
        wire.written.clear()
        wire.protocol.data_received(ask)
        assert wire.written, f"not from the fast path after {others}"
    wire.close()


async def test_a_line_that_differs_each_time_does_not_hinder(fast: Peer) -> None:
    """Proxies add a trace to each request: none of our answers depends on it."""
    assert fast.cache is not None

    def ask(trace: int) -> bytes:
        return (
            b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-%032x-01\r\nX-Request-ID: %d\r\n\r\n"
            % (
                trace,
                trace,
            )
        )

    for trace in range(2):
        await fast.talk([ask(trace)], eager=False)
    assert fast.cache.find(ask(3)) is not None
    assert fast.cache.find(ask(4).replace(b"Host: a", b"Host: b")) is None
    assert fast.cache.find(ask(5).replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n")) is None


async def test_more_lines_than_aiohttp_takes_are_refused_by_the_fast_path_as_well(
    both: Pair,
) -> None:
    """Lines that are left out of what is remembered count for the limit: 128 fields by aiohttp's own default."""
    ask = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (b"b3: 1\r\n" * 400)
    assert len(ask) < request_key.MAX_REQUEST_BYTES
    for one in both:
        for _ in range(3):
            await one.talk([ASK], eager=False)
        assert (await one.talk([ask], eager=False)).written.startswith(b"HTTP/1.1 431 ")


async def test_a_long_request_is_not_remembered(fast: Peer) -> None:
    """What a client may make the server keep is bounded: in each request, and in all of them."""
    assert fast.cache is not None
    for more, known in ((0, True), (1, False)):
        empty = b"GET / HTTP/1.1\r\nHost: a\r\nX-Filler: \r\n\r\n"
        filler = b"X-Filler: " + b"x" * (request_key.MAX_REQUEST_BYTES - len(empty) + more)
        ask = empty.replace(b"X-Filler: ", filler)
        assert len(ask) == request_key.MAX_REQUEST_BYTES + more
        for _ in range(3):
            await fast.talk([ask], eager=False)
        assert (fast.cache.find(ask) is not None) is known


async def test_a_change_ends_what_is_remembered(
    fast: Peer, config: Path, eventually: Eventually
) -> None:
    """And so does the loss of the file: the next answer says that it is stale."""
    assert fast.cache is not None
    await fast.talk([ASK] * 3, eager=False)
    before = handler_api.epoch()
    config.write_text("456")
    await eventually(lambda: handler_api.epoch() > before)
    assert fast.cache.find(ASK) is None
    assert b'"456"' in (await fast.talk([ASK] * 3, eager=False)).written
    before = handler_api.epoch()
    config.unlink()
    await eventually(lambda: handler_api.epoch() > before)
    assert b"Sidecar-Stale: " in (await fast.talk([ASK], eager=False)).written


async def test_a_generation_that_is_over_is_not_kept() -> None:
    """Whatever was offered before the last `forget`."""

    async def handler(request: web.Request) -> web.Response:
        generation = handler_api.epoch()
        handler_api.invalidate_all()
        handler_api.mark_cacheable(request, generation)
        return web.Response(text="old")

    app = web.Application()
    app.router.add_get("/", handler)
    async with peer(app, ListenerCache()) as one:
        await one.talk([ASK] * 3, eager=False)
        assert one.cache.find(ASK) is None


async def test_what_was_fetched_with_a_token_is_never_remembered(
    tmp_path: Path, config: Path
) -> None:
    """The token is asked for each time, so one that was taken back opens nothing."""
    token = place(tmp_path / "token", "secret")
    ask = ASK[:-2] + b"Authorization: Bearer secret\r\n\r\n"
    async with peer(reader_app(config, token_file=token), ListenerCache()) as one:
        outcome = await one.talk([ask] * 3 + [ASK] * 3, eager=False)
        assert (outcome.written.count(b" 200 "), outcome.written.count(b" 401 ")) == (3, 3)
        assert (one.cache.find(ask), one.cache.find(ASK)) == (None, None)


async def test_two_places_do_not_share_answers(config: Path, tmp_path: Path, served: Serve) -> None:
    """The same bytes, at two ports of one process."""
    other = place(tmp_path / "other" / "config", "456")
    first, second = await served(reader_app(config)), await served(reader_app(other))
    for _ in range(3):
        assert b'"123"' in await exchange(first.port)
        assert b'"456"' in await exchange(second.port)


async def exchange(port: int, request: bytes = ASK) -> bytes:
    """Send one request again and again on a connection, until the fast path must have it; return the last answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b""
    for _ in range(3):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        head += await reader.readexactly(length)
    writer.close()
    return head


@pytest.mark.parametrize("around", ["middleware", "signal", "parent"])
async def test_an_application_that_wants_to_see_each_request_sees_it(
    config: Path, around: str
) -> None:
    """A middleware or a signal of a user: an audit, a limit of a rate, a header that is new each time."""
    seen: list[str | int] = []

    @web.middleware
    async def audit(request: web.Request, handler: object) -> web.StreamResponse:
        seen.append(request.path)
        answer: web.StreamResponse = await handler(request)  # type: ignore[operator]
        return answer

    async def sign(_: web.Request, response: web.StreamResponse) -> None:
        seen.append(response.status)

    app = reader_app(config)
    ask = ASK
    if around == "middleware":
        app.middlewares.append(audit)
    elif around == "signal":
        app.on_response_prepare.append(sign)
    else:
        parent = web.Application(middlewares=[audit])
        parent.add_subapp("/config/", app)
        app, ask = parent, ASK.replace(b"GET /", b"GET /config/")
    async with peer(app, ListenerCache()) as one:
        await one.talk([ask] * 5, eager=False)
    assert len(seen) == 5


async def test_a_mounted_reader_has_the_lane_too(config: Path) -> None:
    """In an application without middlewares of its own, under whatever prefix."""
    parent = web.Application()
    parent.add_subapp("/config/", reader_app(config))
    parent.add_subapp("/site/", files_app(config.parent))
    async with peer(parent, ListenerCache()) as one:
        for path in (b"GET /config/", b"GET /site/config"):
            ask = ASK.replace(b"GET /", path)
            await one.talk([ask] * 2, eager=False)
            assert one.cache.find(ask) is not None


async def test_a_date_that_is_still_to_come_is_not_remembered(config: Path) -> None:
    """It is sent as the present one, which is another each time."""
    future = time.time() + 3600
    os.utime(config, (future, future))
    async with peer(reader_app(config), ListenerCache()) as one:
        outcome = await one.talk([ASK] * 3, eager=False)
        assert outcome.written.count(b" 200 OK") == 3
        assert one.cache.find(ASK) is None


async def test_what_the_lane_answers_is_counted(fast: Peer) -> None:
    """Each once, however often somebody scrapes."""

    def count() -> float:
        metrics.exposition()
        return metrics.HTTP_REQUESTS_TOTAL.labels("200")._value.get()

    before = count()
    await fast.talk([ASK] * 10, eager=False)
    assert count() - before == 10
    assert count() - before == 10


async def test_one_who_asks_in_ever_new_words_fills_nothing(fast: Peer) -> None:
    """And takes the place of nobody who asks twice."""
    assert fast.cache is not None
    await fast.talk([ASK] * 2, eager=False)
    for number in range(3000):
        await fast.talk([ASK.replace(b"GET /", b"GET /?%d" % number)], eager=False)
    assert fast.cache.find(ASK) is not None
    assert "answers=1 " in repr(fast.cache)


@pytest.mark.parametrize("bound", ["_MAX_RESPONSES", "_MAX_CACHE_BYTES"])
async def test_what_is_remembered_has_a_bound_in_number_and_in_bytes(
    fast: Peer, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """The answer beyond it takes the place of all others; whoever asks each thing twice fills nothing either."""
    assert fast.cache is not None
    asks = [ASK.replace(b"GET /", b"GET /?%d" % number) for number in range(4)]
    await fast.talk([asks[0]] * 2, eager=False)
    each = int(re.findall(r"bytes=(\d+)", repr(fast.cache))[0])
    monkeypatch.setattr(response_cache, bound, 3 if bound == "_MAX_RESPONSES" else 3 * each)
    for ask, count in zip(asks[1:], (2, 3, 1), strict=True):
        await fast.talk([ask] * 2, eager=False)
        assert f"answers={count} " in repr(fast.cache)
    assert fast.cache.find(asks[0]) is None
    assert fast.cache.find(asks[3]) is not None


async def test_who_does_not_read_is_not_sent_more(
    config: Path, served: Serve, eventually: Eventually
) -> None:
    """A megabyte for each forty bytes: what is unsent stays that of one answer or two, and others are served."""
    place(config, "x" * 900_000)
    one = await served(reader_app(config))
    _, writer = await asyncio.open_connection("127.0.0.1", one.port, limit=1 << 10)
    writer.write(ASK.replace(b"GET /", b"GET /raw") * 500)
    await eventually(lambda: unsent() > 0)
    for _ in range(3):
        assert b'"xxx' in await exchange(one.port)
    assert unsent() < 2_000_000
    writer.transport.abort()
    await eventually(lambda: unsent() == 0)


async def test_the_lane_answers_nobody_who_does_not_read(fast: Peer) -> None:
    """What the transport cannot get rid of is not added to: aiohttp waits after one answer."""
    await fast.talk([ASK] * 3, eager=False)
    wire = fast.connect()
    await settled(wire)
    wire.protocol.pause_writing()
    for _ in range(20):
        wire.protocol.data_received(ASK)
        for _ in range(10):
            await asyncio.sleep(0)
    assert wire.written.count(b"HTTP/1.1 200") == 1
    wire.protocol.resume_writing()
    await settled(wire)
    assert wire.written.count(b"HTTP/1.1 200") == 20
    wire.close()


def unsent() -> int:
    """Return the bytes that wait in the connections of this process."""
    found = [one for one in gc.get_objects() if isinstance(one, ServerProtocol)]
    return sum(one.transport.get_write_buffer_size() for one in found if one.transport)


async def test_the_end_is_announced_on_connections_that_the_lane_serves(
    fast: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draining: what was remembered said `keep-alive`."""
    assert fast.cache is not None
    await fast.talk([ASK] * 3, eager=False)
    monkeypatch.setattr(lifecycle._LifecycleState, "draining", True)
    handler_api.invalidate_all()
    outcome = await fast.talk([ASK], eager=False)
    assert (b"Connection: close" in outcome.written, outcome.closed) == (True, True)
    assert fast.cache.find(ASK) is None


async def test_an_unknown_path_is_still_a_problem(served: Serve, config: Path) -> None:
    """Only what a handler offers is remembered."""
    import aiohttp

    one = await served(reader_app(config))
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            await problem(await session.get(f"{one.url}/nothing"), 404, "not-found")


async def test_a_unix_socket_has_the_lane_as_a_port_has(
    served: Serve, config: Path, tmp_path: Path
) -> None:
    """One of its own: what was answered at the port is asked of aiohttp here."""
    path = tmp_path / "socket"
    await served(reader_app(config), unix_socket=path)
    before = by_the_fast_path()
    reader, writer = await asyncio.open_unix_connection(path)
    for _ in range(4):
        writer.write(ASK)
        assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b'"123"'
    assert by_the_fast_path() - before == 2
    writer.close()
