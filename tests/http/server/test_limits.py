"""Heads that never end and connections without number: what aiohttp leaves open, and `serve` closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

import sidecar
from sidecar.http.server.limits import ConnectionLimiter
from support import StartProcess, after
from support.httpkit import Serve, Served, talk
from support.parity import Peer, settled

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text="hello")


@pytest.fixture
def app() -> web.Application:
    one = web.Application()
    one.router.add_route("*", "/", hello)
    return one


@pytest.mark.parametrize(
    "head",
    [
        b"G",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" + ASK + b"GET",
    ],
)
async def test_a_head_that_does_not_end_is_answered_with_408(
    served: Serve, app: web.Application, head: bytes
) -> None:
    """Also behind requests that were complete; and then the connection is closed."""
    one = await served(app, head_timeout=0.2)
    most_of_the_limit = after(0.15)
    answers = await talk(one.port, head)
    assert most_of_the_limit.is_set()
    last = answers[answers.rindex(b"HTTP/1.1") :]
    assert last.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in last
    assert b"\r\nConnection: close\r\n" in last


async def test_one_byte_now_and_then_wins_no_time(served: Serve, app: web.Application) -> None:
    """The limit counts from the first byte."""
    one = await served(app, head_timeout=0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    answer = asyncio.create_task(reader.read())
    async with asyncio.timeout(15):
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait({answer}, timeout=0.02)
    with contextlib.suppress(ConnectionResetError):  # by a byte that has crossed the answer
        assert answer.result().startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_slow_body_is_not_a_slow_head(served: Serve, app: web.Application) -> None:
    """An upload takes the time it takes."""
    one = await served(app, head_timeout=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    answer = asyncio.create_task(reader.readuntil(b"hello"))
    for _ in range(5):
        await a_head_is_late(one.port)
        writer.write(b"x")
    assert b" 200 OK" in await answer
    answer = asyncio.create_task(reader.readuntil(b"hello"))
    await a_head_is_late(one.port)
    assert not answer.done()  # nor is what follows it
    writer.write(ASK)
    assert b" 200 OK" in await answer
    writer.close()


async def a_head_is_late(port: int) -> None:
    """Return when a head that was begun now has been found late: one that was begun before would have been, too."""
    assert b" 408 " in await talk(port, b"GET")


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        ASK,
        ASK + ASK,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ],
)
async def test_an_idle_connection_is_not_taken_for_a_slow_one(
    served: Serve, app: web.Application, request_: bytes
) -> None:
    """Between two requests there is no head that could be late; and the timer is off."""
    one = await served(app, head_timeout=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(request_)
    await a_head_is_late(one.port)
    writer.write(ASK.replace(b"/ ", b"/nothing "))
    while b" 404 " not in (head := await reader.readuntil(b"\r\n\r\n")):
        assert b" 408 " not in head
    writer.close()


async def test_a_late_head_does_not_cut_off_the_answer_before_it(served: Serve) -> None:
    """The one under way is finished; then the rest of the next is waited for once more."""

    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        begun.set()
        await go_on.wait()
        return web.Response(text="slow")

    app = web.Application()
    app.router.add_get("/", slow)
    one = await served(app, head_timeout=0.2)
    talking = asyncio.create_task(talk(one.port, ASK + b"GET"))
    await begun.wait()
    await a_head_is_late(one.port)
    go_on.set()
    answers = await talking
    assert answers.startswith(b"HTTP/1.1 200 ")
    assert b"slowHTTP/1.1 408 " in answers


async def test_nothing_is_timed_while_no_head_is_incomplete(app: web.Application) -> None:
    """A process at rest is not woken up."""
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    guard = ConnectionLimiter(head_timeout=60, max_connections=10)
    wire = Peer(runner.server, guard, None).connect()
    await settled(wire)
    assert guard._timer is None
    wire.protocol.data_received(ASK[:5])
    assert guard._timer is not None
    wire.protocol.data_received(ASK[5:])
    assert guard._timer is None
    wire.protocol.data_received(ASK[:5])
    wire.close()
    await settled(wire)
    assert guard._timer is None
    await runner.cleanup()


async def test_late_heads_without_number_leave_others_their_turn() -> None:
    """They are ended a few at a time, all of them at once as far as their clients can tell."""
    guard = ConnectionLimiter(head_timeout=0.01, max_connections=1000)
    ended: list[int] = []
    turns = 0

    class Head:
        busy = False
        awaiting_first_request = False
        client_transport = None
        idle_since = None
        has_unacked_bytes = False

        def evict(self) -> None:
            pytest.fail("there is room")

        def header_timeout_expired(self) -> bool:
            ended.append(turns)
            return True

    for _ in range(1000):
        guard.header_started(Head())
    async with asyncio.timeout(15):
        while len(ended) < 1000:
            await asyncio.sleep(0)
            turns += 1
    assert max(Counter(ended).values()) <= 50
    assert len(set(ended)) <= 2 * 1000 / 50
    assert guard._timer is None


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have as many descriptors as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 20_000), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def busy_app(app: web.Application) -> web.Application:
    """`/wait` answers when `/end` was asked for."""
    over = asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response(text="waited")

    async def end(_: web.Request) -> web.Response:
        over.set()
        return web.Response(text="ended")

    app.add_routes([web.get("/wait", wait), web.get("/a/livez", end), *sidecar.health_routes()])
    return app


CLOSE = b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def occupied(one: Served, count: int, words: bytes) -> list[Stream]:
    """So many connections on which these words were said, one after the other."""
    unacked = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        unacked.append((reader, writer))
        writer.write(words)
        if words == ASK:
            await reader.readuntil(b"hello")
    return unacked


async def test_one_connection_too_many_is_told_so(
    served: Serve, busy_app: web.Application, caplog: pytest.LogCaptureFixture
) -> None:
    """Where all others are at work: 503 and closed, with one line in the log; probes are answered all the same."""
    one = await served(busy_app, max_connections=4)
    unacked = await occupied(one, 4, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    refused = await asyncio.gather(*(talk(one.port, ASK) for _ in range(50)))
    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"/problems/too-many-connections" in answer
    assert [r.message.partition(":")[0] for r in caplog.records] == ["refusing connections"]
    for path in (b"GET /livez", b"HEAD /readyz", b"GET /startupz?verbose=1"):
        answer = await talk(one.port, path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
    assert (await talk(one.port, b"GET /a/livez" + CLOSE)).endswith(b"ended")
    for reader, writer in unacked:
        assert b"waited" in await reader.readuntil(b"waited")
        writer.close()


@pytest.mark.parametrize("words", [b"", ASK, b"GET / HT"], ids=["silent", "idle", "slow"])
async def test_idle_connections_give_way(
    served: Serve, busy_app: web.Application, words: bytes
) -> None:
    """Silent ones, those that wait for another request, and at last slow heads; never one that is at work."""
    one = await served(busy_app, max_connections=8)
    unacked = await occupied(one, 2, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    idle = await occupied(one, 30, words)
    assert (await talk(one.port, b"GET /" + CLOSE)).endswith(b"hello")
    first, _ = idle[0]
    async with asyncio.timeout(10):
        assert await first.read() == b""
    assert (await talk(one.port, b"GET /a/livez" + CLOSE)).endswith(b"ended")
    for reader, writer in unacked:
        await reader.readuntil(b"waited")
        writer.close()
    for _, writer in idle:
        writer.close()


async def test_who_has_been_idle_for_longest_gives_way_first(
    served: Serve, app: web.Application
) -> None:
    """As with nginx: who has asked a moment ago will ask again."""
    one = await served(app, max_connections=3)
    unacked = await occupied(one, 3, b"")
    for number in (0, 2):
        reader, writer = unacked[number]
        writer.write(ASK)
        await reader.readuntil(b"hello")
    assert (await talk(one.port, b"GET /" + CLOSE)).endswith(b"hello")
    assert await unacked[1][0].read() == b""
    unacked[1][1].close()
    for number in (0, 2):
        reader, writer = unacked[number]
        writer.write(ASK)
        await reader.readuntil(b"hello")
        writer.close()


async def test_one_who_is_refused_and_stays_silent_is_closed(
    served: Serve, busy_app: web.Application
) -> None:
    """It holds its descriptor no longer than a head may take."""
    one = await served(busy_app, max_connections=1, head_timeout=0.2)
    ((_, writer),) = await occupied(one, 1, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await talk(one.port, b"")).startswith(b"HTTP/1.1 503 ")
    assert (await talk(one.port, b"GET /a/livez" + CLOSE)).endswith(b"ended")
    writer.close()


@pytest.mark.parametrize(
    ("count", "probes", "timeout"),
    [
        pytest.param(500, 5, 10.0, marks=pytest.mark.slow),
        pytest.param(10_000, 60, 1.0, marks=[pytest.mark.soak, pytest.mark.timeout(300)]),
    ],
)
@pytest.mark.usefixtures("many_files")
def test_silent_connections_do_not_keep_a_probe_out(
    sidecar_process: StartProcess,
    tmp_path: Path,
    free_port: int,
    count: int,
    probes: int,
    timeout: float,
) -> None:
    """As many of them as are allowed, which come again as soon as they are closed: each probe is answered.

    Within a second on a machine that does nothing else: that is the soak, and `benchmarks/connections.py`.
    """
    (tmp_path / "config").write_text("123")
    url = f"http://127.0.0.1:{free_port}"
    sidecar_process(
        "read", "--path", tmp_path / "config", "--host", "127.0.0.1", "--port", free_port,
        "--max-connections", count, until=url,
    )  # fmt: skip
    silent: list[socket.socket] = []
    try:
        for number in range(count + probes):
            silent.append(socket.create_connection(("127.0.0.1", free_port), timeout=10))
            if number >= count:
                assert urllib.request.urlopen(f"{url}/livez", timeout=timeout).status == 200
    finally:
        for one in silent:
            one.close()


def test_there_are_no_more_connections_than_descriptors() -> None:
    """Whatever is configured: some are left for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert ConnectionLimiter(head_timeout=1, max_connections=1 << 40).max_connections < soft


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
async def test_a_thousand_slow_heads_slow_nobody_else_down(
    sidecar_process: StartProcess, tmp_path: Path, free_port: int
) -> None:
    """Each is closed at the limit, and a good client is answered all the time; how soon, `benchmarks/connections.py` tells."""
    (tmp_path / "config").write_text("123")
    url = f"http://127.0.0.1:{free_port}"
    sidecar_process(
        "read", "--path", tmp_path / "config", "--host", "127.0.0.1", "--port", free_port,
        "--head-timeout", 3, until=url,
    )  # fmt: skip

    async def slow() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
        begun = time.monotonic()
        writer.write(ASK[:20])
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        return time.monotonic() - begun

    reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
    tasks = [asyncio.create_task(slow()) for _ in range(1000)]
    answered = 0
    while not all(task.done() for task in tasks):
        writer.write(ASK)
        await reader.readuntil(b'"123"')
        answered += 1
        await asyncio.sleep(0.005)
    writer.close()
    lasted = await asyncio.gather(*tasks)
    assert min(lasted) > 2.9
    assert answered >= 20


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_minute_of_a_thousand_slow_heads_beside_ten_thousand_idle_connections(
    tmp_path: Path,
) -> None:
    """The numbers of `benchmarks/connections.py`: closed in time, 8 KiB each, good clients below 10 ms."""
    benchmark = Path(__file__).parents[3] / "benchmarks/connections.py"
    command = [sys.executable, str(benchmark), "--alone", "--json", str(tmp_path / "found.json")]
    subprocess.run(command, check=True)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len([row for row in rows if row["goal"] is not None]) >= 6
    missed = [
        row
        for row in rows
        if (row["goal"] is not None and row["ours"] > row["goal"])
        or (row["least"] is not None and row["ours"] < row["least"])
    ]
    assert not missed
