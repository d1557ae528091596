"""Serving for real: what comes over the wire, and the end in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import sidecar
from sidecar import _errors
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.server import limits, sendfile, sockets
from sidecar.http.server import serve as serving
from sidecar.process import lifecycle, metrics
from support import Eventually, StartProcess
from support.httpkit import Serve, place, problem, start_serving, talk

BEGUN: web.AppKey[asyncio.Event] = web.AppKey("begun", asyncio.Event)


@pytest.fixture
def slow() -> web.Application:
    """An application of a user: answers at once, slowly, at length, by failing."""

    async def quick(_: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def later(request: web.Request) -> web.Response:
        request.app[BEGUN].set()
        await asyncio.sleep(float(request.query["seconds"]))
        return web.Response(text="late")

    async def much(request: web.Request) -> web.Response:
        # The handler is done at once, and all of it lies in a buffer.
        assert request.transport is not None
        request.transport.set_write_buffer_limits(high=1 << 30)
        return web.Response(body=bytes(32 << 20))

    async def count(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("the inside")

    app = web.Application(client_max_size=1 << 30)
    app[BEGUN] = asyncio.Event()
    app.add_routes(
        [
            web.get("/", quick),
            web.get("/later", later),
            web.get("/much", much),
            web.put("/", count),
            web.get("/fail", fail),
        ]
    )
    app.add_routes(sidecar.health_routes())
    return app


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def waiting() -> float | None:
    """How many requests wait for a change."""
    return metrics.REGISTRY.get_sample_value("sidecar_subscribers")


async def head_of(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(10):
        return (await reader.readuntil(b"\r\n\r\n")).decode()


# Addresses


async def test_it_says_where_it_listens(served: Serve, slow: web.Application) -> None:
    """The address with the port that was chosen."""
    one = await served(slow)
    assert one.url == f"http://127.0.0.1:{one.port}"
    assert (await talk(one.port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"quick")


async def test_a_busy_port_is_told_with_the_way_out(served: Serve, slow: web.Application) -> None:
    """Before the application starts, with the port and the option."""
    one = await served(slow)
    started = []

    async def start(_: web.Application) -> None:
        started.append(1)

    other = web.Application()
    other.on_startup.append(start)
    with pytest.raises(_errors.ConfigError, match=rf"port {one.port} is in use .*--port"):
        await serving.serve(other, host="127.0.0.1", port=one.port)
    assert started == []


async def test_an_address_that_is_not_here_is_told(slow: web.Application) -> None:
    """192.0.2.0/24 is on no machine (RFC 5737)."""
    with pytest.raises(_errors.ConfigError, match=r"192\.0\.2\.1.*--host"):
        await serving.serve(slow, host="192.0.2.1", port=0)
    with pytest.raises(_errors.ConfigError, match="no such address"):
        await serving.serve(slow, host="no such host", port=0)


async def test_nowhere_to_listen_is_an_error(slow: web.Application) -> None:
    """Neither a port nor a socket."""
    with pytest.raises(_errors.ConfigError, match="nowhere to listen"):
        await serving.serve(slow, port=None)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
async def test_the_ipv6_address_of_all_takes_ipv4_too(served: Serve, slow: web.Application) -> None:
    """A Pod with `--host ::` serves a cluster of either kind, or of both."""
    one = await served(slow, host="::")
    assert one.url == f"http://[::]:{one.port}"
    assert (await talk(one.port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"quick")
    reader, writer = await asyncio.open_connection("::1", one.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await reader.read()).endswith(b"quick")
    writer.close()
    await writer.wait_closed()


async def test_a_unix_socket_is_served_and_removed(
    served: Serve, slow: web.Application, tmp_path: Path
) -> None:
    """For user and group, beside or instead of a port; its file goes away at the end."""
    path = tmp_path / "http.sock"
    one = await served(slow, port=None, unix_socket=path)
    assert one.addresses == [f"unix:{path}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        assert await (await session.get("http://localhost/")).text() == "quick"
    await one.stop()
    assert not path.exists()


async def test_a_socket_that_a_killed_process_left_is_replaced(
    served: Serve, slow: web.Application, tmp_path: Path
) -> None:
    """Nobody listens there any more; where somebody does, or another file lies, it is left alone."""
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await served(slow, port=None, unix_socket=path)
    with pytest.raises(_errors.ConfigError, match="another process listens"):
        await serving.serve(web.Application(), port=None, unix_socket=path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(_errors.ConfigError, match="another file lies there"):
        await serving.serve(web.Application(), port=None, unix_socket=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_socket_whose_listener_is_stuck_is_not_waited_for(tmp_path: Path) -> None:
    """It takes nobody any more, and is there all the same: a start must not hang on it."""
    path = str(tmp_path / "http.sock")
    told: list[str] = []

    def start() -> None:
        try:
            with sockets.bind_unix(path):
                told.append("served")
        except _errors.ConfigError as error:
            told.append(str(error))

    starting = threading.Thread(target=start)
    with contextlib.ExitStack() as stack:
        stuck = stack.enter_context(socket.socket(socket.AF_UNIX))
        stuck.bind(path)
        stuck.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(path)
        starting.start()
        starting.join(5)
        found = list(told)
    starting.join()
    assert found
    assert "another process listens there" in found[0]


def connections(port: int) -> int:
    """How many the kernel has at a port of ours, that are not being closed by both sides."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [state for _, local, _, state, *_ in rows if local.endswith(f":{port:04X}")]
    return sum(state in ("01", "04", "08") for state in mine)


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_a_client_that_takes_nothing_does_not_keep_its_connection(
    served: Serve,
    tmp_path: Path,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """Whether aiohttp waits for it or takes it for idle: as many as may be open would keep out all others."""
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(sendfile, "SEND_TIMEOUT", 0.5)
    one = await served(reader_app(place(tmp_path / "config", "x" * size)))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", one.port))
        assert connections(one.port) == 1
        client.sendall(b"GET /raw HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
        await eventually(lambda: connections(one.port) == 0)


@pytest.mark.parametrize(("size", "count"), [(100_000, 40), (3_000_000, 10)])
async def test_a_slow_client_is_sent_its_whole_answer(
    served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    """However long that takes: it takes less than the kernel would send next, but something, again and again."""
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 1.0)
    monkeypatch.setattr(sendfile, "SEND_TIMEOUT", 1.0)
    one = await served(reader_app(place(tmp_path / "config", "x" * size)))
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", one.port))
        client.setblocking(False)
        await loop.sock_sendall(client, b"GET /raw HTTP/1.1\r\nHost: x\r\n\r\n" * count)
        taken, slow_until = 0, loop.time() + 2.5 * limits.STALL_TIMEOUT
        async with asyncio.timeout(30):
            while taken < count * size:
                slow = loop.time() < slow_until
                piece = await loop.sock_recv(client, 1000 if slow else 1 << 20)
                assert piece
                taken += piece.count(b"x")
                await asyncio.sleep(0.05 if slow else 0)


# What comes over the wire


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (b"nonsense\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/9.9\r\n\r\n", 505, "unsupported-version"),
        (b"GET / HTTP/1.1\r\nHost x\r\n\r\n", 400, "bad-request"),
        ("GET /?content=é HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "bad-request"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri-too-long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431, "head-too-large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 200 + b"\r\n", 431, "head-too-large"),
        (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-request"),
        (
            b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Encoding: br\r\n\r\nx",
            415,
            "unsupported-coding",
        ),
        (b"PUT /nope HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\n\r\n", 417, "expectation-failed"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad-request"),
    ],
)
async def test_what_is_no_http_gets_a_problem_and_no_traceback(
    served: Serve,
    slow: web.Application,
    caplog: pytest.LogCaptureFixture,
    request_: bytes,
    status: int,
    kind: str,
) -> None:
    """Answered by aiohttp's own parser, in our form; the connection ends, the log stays quiet."""
    one = await served(slow)
    answer = await talk(one.port, request_)
    assert answer.split(b"\r\n")[0].split()[1] == str(status).encode()
    assert b"application/problem+json" in answer
    assert f"/problems/{kind}".encode() in answer
    assert caplog.records == [r for r in caplog.records if r.levelname in {"DEBUG", "INFO"}]


async def test_each_limit_of_a_head_says_what_to_change(
    served: Serve, slow: web.Application
) -> None:
    """A content in the address can be sent in another way; a header can only be shorter."""
    one = await served(slow)
    address = b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    header = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * 70_000 + b"\r\n\r\n"
    assert b"send large contents with PUT" in await talk(one.port, address)
    assert b"more than 8190 bytes; send shorter headers" in await talk(one.port, header)


@pytest.mark.parametrize(
    "header", ["If-Match", "If-None-Match", "Prefer", "Content-Range", "Range"]
)
async def test_bytes_in_a_header_make_no_500(served: Serve, tmp_path: Path, header: str) -> None:
    """They are shown in the problem as well as JSON can: not at all."""
    one = await served(writer_app(tmp_path / "config"))
    head = f"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n{header}: ".encode()
    answer = await talk(one.port, head + b"\xff\xfe\r\nConnection: close\r\n\r\n1")
    assert int(answer.split()[1]) in {201, 400, 412}


async def test_a_body_that_is_broken_and_unwanted_is_no_error(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused by its name; that it is no gzip either is found when nobody wants it any more."""
    one = await served(writer_app(tmp_path / "config"))
    head = b"PUT /files/..a HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n"
    answer = await talk(one.port, head + b"Connection: close\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_failing_handler_of_a_user_gets_a_problem(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession
) -> None:
    """Without our middleware too: 500, and nothing of the inside."""
    one = await served(slow)
    found = await problem(await http.get(f"{one.url}/fail"), 500, "internal-error")
    assert "inside" not in str(found)


async def test_a_client_that_goes_away_is_no_error(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """In the middle of an upload, thousands of times a day: nothing for the log, nothing left over."""
    one = await served(writer_app(tmp_path / "config"))
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(b"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        await eventually(lambda: list(tmp_path.glob("..tmp-*")))
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: not list(tmp_path.glob("..tmp-*")))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_an_unknown_expectation_gets_a_problem(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession
) -> None:
    """aiohttp raises that one before any middleware."""
    one = await served(slow)
    answer = await http.put(one.url, data=b"1", headers={"Expect": "tea"})
    await problem(answer, 417, "expectation-failed")


async def test_a_long_text_fits_in_the_address(
    served: Serve, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """`GET /?content=` with 60 KB, as the article's server takes it."""
    one = await served(writer_app(tmp_path / "config"))
    answer = await http.get(f"{one.url}/?content={'x' * 60_000}")
    assert (answer.status, (tmp_path / "config").stat().st_size) == (200, 60_000)


async def test_an_address_that_ends_with_the_host_means_the_root(
    served: Serve, tmp_path: Path
) -> None:
    """As a client writes it that takes us for a proxy (RFC 9112 section 3.2.2, RFC 9110 section 4.2.3)."""
    one = await served(writer_app(tmp_path / "config"))

    async def answer(target: str) -> list[bytes]:
        request = f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        return (await talk(one.port, request.encode())).splitlines()

    assert (await answer("http://h?content=a%2Bb"))[0] == b"HTTP/1.1 200 OK"
    assert (tmp_path / "config").read_text() == "a+b"
    assert (await answer("http://h"))[-1] == (await answer("/"))[-1]
    assert (await answer("http://h/livez"))[0] == b"HTTP/1.1 200 OK"
    assert (await answer("http://h/nothing"))[0].startswith(b"HTTP/1.1 404 ")


async def test_every_answer_is_counted_by_its_status(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession
) -> None:
    """Those of the parser too."""
    one = await served(slow)

    def count(code: str) -> float:
        name = "sidecar_http_requests_total"
        return metrics.REGISTRY.get_sample_value(name, {"code": code}) or 0.0

    before = {code: count(code) for code in ("200", "404", "400")}
    await http.get(one.url)
    await http.get(f"{one.url}/nothing")
    await talk(one.port, b"nonsense\r\n\r\n")
    assert {code: count(code) - before[code] for code in before} == {"200": 1, "404": 1, "400": 1}


async def test_the_server_does_not_tell_its_versions(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession
) -> None:
    """What a scanner looks for first."""
    one = await served(slow)
    assert (await http.get(one.url)).headers["Server"] == "sidecar"


async def test_a_refused_upload_does_not_confuse_the_connection(
    served: Serve, tmp_path: Path
) -> None:
    """Refused after `Expect: 100-continue`, the body may come or not: the connection is closed, at once."""
    one = await served(writer_app(tmp_path / "config"))
    request = (
        b"PUT /files/..a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(request)
    head = await head_of(reader)
    assert head.startswith("HTTP/1.1 400 ")
    assert "Connection: close" in head
    writer.close()
    await writer.wait_closed()


# The end


def test_connections_that_nobody_has_accepted_are_served_at_the_end(slow: web.Application) -> None:
    """They are made by the kernel, and their requests are sent: a reset would be an error of ours."""

    async def main() -> None:
        one = await start_serving(slow)
        clients = [socket.create_connection(("127.0.0.1", one.port), timeout=10) for _ in range(50)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await one.stop()  # the loop has not run since they came, and uvloop accepts one at a time
        for client in clients:
            with client, client.makefile("rb") as answer:
                assert answer.read().endswith(b"quick")

    with asyncio.Runner(loop_factory=lifecycle._new_loop) as runner:
        runner.run(main())


async def test_a_client_that_has_just_connected_may_ask_at_the_end(
    served: Serve,
    slow: web.Application,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    """Its request is on the way; but one that has been answered before has had its turn."""
    monkeypatch.setattr(serving, "_FIRST_REQUEST_GRACE", 600.0)
    one = await served(slow)
    fresh = await asyncio.open_connection("127.0.0.1", one.port)
    idle = await asyncio.open_connection("127.0.0.1", one.port)
    idle[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await head_of(idle[0])
    one.task.cancel()
    await eventually(lifecycle.draining)
    for _ in range(20):
        await asyncio.sleep(0)
    fresh[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "Connection: close" in await head_of(fresh[0])
    await asyncio.wait({one.task})  # and not for the time that is given to a new connection
    for _, writer in (fresh, idle):
        writer.close()
        await writer.wait_closed()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has filters at sockets")
def test_a_socket_can_be_kept_from_beginning_connections() -> None:
    """What is there is accepted, what comes is not answered, so nothing is lost by closing it; and it can be undone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname(), timeout=10)
        sockets.drop_new_syns(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.1)
        with there, listener.accept()[0] as accepted:
            there.sendall(b"still here")
            assert accepted.recv(100) == b"still here"
        sockets.accept_syns(listener)
        socket.create_connection(listener.getsockname(), timeout=10).close()


async def test_the_end_is_in_order(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession, eventually: Eventually
) -> None:
    """Not ready, but still answering, and telling clients to close; then no new connections."""
    one = await served(slow, drain_delay=600.0)
    assert (await http.get(f"{one.url}/readyz")).status == 200
    one.task.cancel()
    await eventually(lifecycle.draining)
    await problem(await http.get(f"{one.url}/readyz"), 503, "not-ready")
    answer = await http.get(one.url)
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert (await http.get(f"{one.url}/livez")).status == 200
    one.task.cancel()  # cuts the delay short
    await asyncio.wait({one.task})
    assert one.task.cancelled()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(one.url)


async def test_a_request_under_way_is_finished(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession
) -> None:
    """Whatever it is doing when the end comes."""
    one = await served(slow)
    asking = asyncio.create_task(http.get(f"{one.url}/later?seconds=0.5"))
    await slow[BEGUN].wait()
    await one.stop()
    answer = await asking
    assert (answer.status, await answer.text()) == (200, "late")


async def test_a_long_answer_to_a_slow_client_is_not_cut_off(
    served: Serve, slow: web.Application
) -> None:
    """It has left the handler, and lies in a buffer of this process still."""
    one = await served(slow)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port, limit=1 << 16)
    writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
    await head_of(reader)
    stopping = asyncio.create_task(one.stop())
    received = 0
    while chunk := await reader.read(1 << 18):
        received += len(chunk)
        await asyncio.sleep(0.002)
        if received < 8 << 20:
            assert not stopping.done()
    assert received == 32 << 20
    await stopping
    writer.close()
    await writer.wait_closed()


LONG_ANSWER = """
import sidecar
from aiohttp import web

async def much(request: web.Request) -> web.Response:
    request.transport.set_write_buffer_limits(high=1 << 30)
    return web.Response(body=bytes(32 << 20))

app = web.Application()
app.add_routes([web.get("/", much)])
sidecar.run(sidecar.serve(app, host="127.0.0.1", port={port}, drain_delay=0.0))
"""


async def test_a_process_ends_after_the_last_byte_has_left_it(
    start_process: StartProcess, tmp_path: Path, free_port: int
) -> None:
    """What lies in a buffer when the loop is closed is lost: a real SIGTERM, and a client that dawdles."""
    program = tmp_path / "program.py"
    program.write_text(LONG_ANSWER.format(port=free_port))
    process = start_process(sys.executable, program, until="listening on")
    reader, writer = await asyncio.open_connection("127.0.0.1", free_port, limit=1 << 14)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await head_of(reader)
    process.send(signal.SIGTERM)
    received = 0
    while chunk := await reader.read(1 << 16):
        received += len(chunk)
        await asyncio.sleep(0.001)
    assert received == 32 << 20
    assert process.wait() == 0
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_is_coming_in_is_received(
    served: Serve, tmp_path: Path, eventually: Eventually
) -> None:
    """An upload that began before the end is published, not dropped half-way."""
    one = await served(writer_app(tmp_path / "config"))
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"PUT /files/config HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
    await eventually(lambda: list(tmp_path.glob("..tmp-*")))
    stopping = asyncio.create_task(one.stop())
    await eventually(lifecycle.draining)
    writer.write(b"67890")
    assert (await head_of(reader)).startswith("HTTP/1.1 204 ")
    await stopping
    assert (tmp_path / "config").read_text() == "1234567890"
    writer.close()
    await writer.wait_closed()


async def test_a_request_that_takes_too_long_is_cut_off(
    served: Serve, slow: web.Application, http: aiohttp.ClientSession
) -> None:
    """After `drain_timeout`: the grace period of a Pod is not endless."""
    one = await served(slow, drain_timeout=0.2)
    asking = asyncio.create_task(http.get(f"{one.url}/later?seconds=600"))
    await slow[BEGUN].wait()
    await one.stop()
    with pytest.raises(aiohttp.ClientError):
        await asking


async def test_who_waits_for_a_change_gets_an_answer(
    served: Serve, tmp_path: Path, http: aiohttp.ClientSession, eventually: Eventually
) -> None:
    """A long-poll of five minutes does not hold up the end: 304 now. New ones do not wait at all."""
    done = await sidecar.publish_file(tmp_path / "config", "123")
    one = await served(reader_app(tmp_path / "config"), drain_delay=600.0)
    headers = {"If-None-Match": done.etag, "Prefer": "wait=300"}
    asking = asyncio.create_task(http.get(one.url, headers=headers))
    await eventually(lambda: waiting() == 1)
    one.task.cancel()
    await eventually(lifecycle.draining)
    assert (await http.get(one.url, headers=headers)).status == 304
    one.task.cancel()  # cuts the delay short
    assert (await asking).status == 304
    await asyncio.wait({one.task})


async def test_who_waits_for_a_confirmation_is_told_that_there_was_none_yet(
    served: Serve, tmp_path: Path, http: aiohttp.ClientSession, eventually: Eventually
) -> None:
    """The content is published: `202`, not a broken connection."""
    one = await served(writer_app(tmp_path / "config", confirm="http://127.0.0.1:9/"))
    url = f"{one.url}/?content=1"
    asking = asyncio.create_task(http.get(url, headers={"Prefer": "wait=300"}))
    await eventually(lambda: waiting() == 1)
    await one.stop()
    assert (await asking).status == 202
    assert (tmp_path / "config").read_text() == "1"


async def test_who_has_gone_does_not_wait_any_more(
    served: Serve, tmp_path: Path, eventually: Eventually
) -> None:
    """A client that breaks off its long-poll leaves nothing behind."""
    done = await sidecar.publish_file(tmp_path / "config", "123")
    one = await served(reader_app(tmp_path / "config"))
    _, writer = await asyncio.open_connection("127.0.0.1", one.port)
    head = f"GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: {done.etag}\r\nPrefer: wait=300\r\n\r\n"
    writer.write(head.encode())
    await eventually(lambda: waiting() == 1)
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: waiting() == 0)


async def test_an_idle_connection_does_not_hold_up_the_end(
    served: Serve, slow: web.Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept open, asked once, silent since."""
    monkeypatch.setattr(serving, "KEEP_ALIVE", 600.0)
    one = await served(slow, drain_timeout=600.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "Connection: close" not in await head_of(reader)
    await one.stop()
    writer.close()
    await writer.wait_closed()


async def test_an_idle_connection_is_closed_in_the_end(
    served: Serve, slow: web.Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `KEEP_ALIVE` seconds, one that never said a word as well."""
    monkeypatch.setattr(serving, "KEEP_ALIVE", 0.2)
    one = await served(slow)
    assert await talk(one.port, b"") == b""
    assert (await talk(one.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(b"quick")


async def test_what_fails_at_the_start_leaves_nothing_open(
    served: Serve, slow: web.Application, free_port: int
) -> None:
    """The port is free again, and what was started is cleaned up."""
    ended = []

    async def resource(_: web.Application) -> AsyncIterator[None]:
        yield
        ended.append("first")

    async def broken(_: web.Application) -> AsyncIterator[None]:
        raise RuntimeError("cannot start")
        yield

    app = web.Application()
    app.cleanup_ctx.extend([resource, broken])
    with pytest.raises(RuntimeError, match="cannot start"):
        await serving.serve(app, host="127.0.0.1", port=free_port)
    assert ended == ["first"]
    assert (await served(slow, port=free_port)).port == free_port


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
async def test_without_a_host_both_families_are_served(
    served: Serve, slow: web.Application
) -> None:
    """As with Go's ":8080": a Pod of a cluster that has IPv6 alone is reached, and one of IPv4, and one of both."""
    one = await served(slow, host="")
    for address in ("127.0.0.1", "::1"):
        reader, writer = await asyncio.open_connection(address, one.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"quick")
        writer.close()


@pytest.mark.parametrize("error", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_a_host_ipv4_is_served_where_there_is_no_ipv6(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """`ipv6.disable=1` of the kernel, or a sandbox that has none."""
    bind = sockets._bind

    def without_ipv6(family: socket.AddressFamily, *rest: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            with sockets._bind_errors("", 0):
                raise OSError(error, os.strerror(error))
        return bind(family, *rest, **options)

    monkeypatch.setattr(sockets, "_bind", without_ipv6)
    (one,) = sockets.bind_tcp("", 0)
    with one:
        assert (one.family, one.getsockname()[0]) == (socket.AF_INET, "0.0.0.0")


def test_a_busy_port_is_told_in_either_family() -> None:
    """Also where the other program has IPv4 alone."""
    with (
        socket.create_server(("0.0.0.0", 0)) as other,
        pytest.raises(sidecar.ConfigError, match="in use"),
    ):
        sockets.bind_tcp("", other.getsockname()[1])
