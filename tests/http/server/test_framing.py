"""What RFC 9112 demands of a request and aiohttp does not; each application that is served has it."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from aiohttp import web

from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.semantics import representation
from support.httpkit import Serve, place, talk

ASK = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
SMUGGLED = b"GET /?content=smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def codes(answer: bytes) -> list[str]:
    return re.findall(r"HTTP/1\.1 (\d{3}) ", answer.decode("latin-1"))


@pytest.mark.parametrize("method", [b"GET /versions", b"PUT /files/a", b"GET /nothing"])
@pytest.mark.parametrize(
    "lines",
    [
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding: \r\nContent-Length: %d\r\n" % len(SMUGGLED),
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Host: x/y@z\r\n",
    ],
)
async def test_a_request_whose_end_is_in_doubt_is_the_last_one(
    served: Serve, tmp_path: Path, method: bytes, lines: bytes
) -> None:
    """400 and closed (section 6.3, rule 4): nothing behind it is taken for a request."""
    one = await served(writer_app(tmp_path / "config"))
    host = b"" if b"Host" in lines else b"Host: a\r\n"
    answer = await talk(one.port, method + b" HTTP/1.1\r\n" + host + lines + b"\r\n" + SMUGGLED)
    assert codes(answer) == ["400"]
    assert b"application/problem+json" in answer
    assert (tmp_path / "config").read_text() == ""


@pytest.mark.parametrize("method", [b"GET /versions", b"PUT /files/a", b"GET /nothing"])
async def test_a_transfer_coding_of_http_1_0_is_refused(
    served: Serve, tmp_path: Path, method: bytes
) -> None:
    """Its framing is faulty, whatever `Connection` says (RFC 9112 section 6.1): 400 and closed."""
    one = await served(writer_app(tmp_path / "config"))
    head = b" HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    behind = SMUGGLED[:-2] + b"Connection: close\r\n\r\n"
    answer = await talk(one.port, method + head + b"1\r\nx\r\n0\r\n\r\n" + behind)
    assert codes(answer) == ["400"]
    assert b"application/problem+json" in answer
    assert (tmp_path / "config").read_text() == ""


@pytest.mark.parametrize(
    ("host", "status"),
    [(host, "400") for host in ("x/y@z", "a b", "a,b", 'x"y', "[::1", "a:b:c", "\xfc", "a:", "<a>")]
    + [(host, "200") for host in ("", "a", "a-b.c_d:80", "10.0.0.1:8081", "[fd00::1]:8081")],
)
async def test_an_invalid_host_is_refused(
    served: Serve, tmp_path: Path, host: str, status: str
) -> None:
    """400 (section 3.2), as with nginx; probes of the kubelet name an address."""
    if host == "a:":
        status = "200"  # an empty port is valid (RFC 3986 section 3.2.3)
    one = await served(reader_app(tmp_path / "config"))
    head = f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert codes(await talk(one.port, head.encode("latin-1"))) == [status]


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("1.2", "200"),
        ("1.9", "200"),
        ("2.0", "505"),
        ("3.0", "505"),
        ("0.9", "505"),
        ("1.10", "400"),
    ],
)
async def test_a_version_that_is_not_known(
    served: Serve, tmp_path: Path, version: str, status: str
) -> None:
    """A higher minor one is served as 1.1, another major one is refused, and each answer is HTTP/1.1 (RFC 9110 2.5)."""
    one = await served(reader_app(tmp_path / "config"))
    for before in (b"", ASK):  # also as the second request of a connection
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(before)
        if before:
            await reader.readuntil(b"}}")
        writer.write(f"GET /livez HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert codes(await reader.read()) == [status]
        writer.close()


@pytest.mark.parametrize(
    "line", ["GET /livez", "PRI * HTTP/2.0", "GET /livez http/1.1", "G@T / HTTP/1.1"]
)
async def test_what_is_refused_is_answered_as_http_1_1(
    served: Serve, tmp_path: Path, line: str
) -> None:
    """Also what the parser does not let through, the preface of HTTP/2 among it."""
    one = await served(reader_app(tmp_path / "config"))
    (code,) = codes(await talk(one.port, f"{line}\r\nHost: a\r\n\r\n".encode()))
    assert code in ("400", "505")


@pytest.mark.parametrize(
    "head", [b"GET /versions HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
             b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"],
)  # fmt: skip
async def test_nothing_behind_an_ignored_upgrade_is_answered_by_mistake(
    served: Serve, tmp_path: Path, head: bytes
) -> None:
    """What comes behind it is dropped by the parser, so the connection ends and says so (RFC 9110 7.8, RFC 9112 9.3)."""
    one = await served(writer_app(tmp_path / "config"))
    answer = await talk(one.port, head + SMUGGLED)
    assert len(codes(answer)) == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert (tmp_path / "config").read_text() == ""


async def test_a_websocket_of_a_users_own_is_upgraded(served: Serve) -> None:
    """That upgrade is not ignored."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    from aiohttp import ClientSession

    app = web.Application()
    app.add_routes([web.get("/", echo)])
    one = await served(app)
    async with ClientSession() as http, http.ws_connect(one.url) as socket:
        for text in ("a", "b"):
            await socket.send_str(text)
            assert await socket.receive_str() == text


async def hello(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text="hello")


PUT = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
CHUNKED = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [PUT + b"xx" + b"GET / HT"],
        [PUT + b"x", b"x" + b"GET / HT"],
        [CHUNKED + b"1\r\nx\r\n0\r\n\r\nGET / HT"],
        [CHUNKED + b"1\r\nx\r\n", b"0\r\n\r\nGET / HT"],
        [PUT + b"xx" + PUT + b"xx" + b"GET / HT"],
    ],
)
async def test_a_head_behind_a_body_has_the_same_time(served: Serve, pieces: list[bytes]) -> None:
    """Also where it begins in the segment that ends the body."""
    app = web.Application()
    app.router.add_route("*", "/", hello)
    one = await served(app, head_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02)  # a segment of its own
    async with asyncio.timeout(10):
        assert codes(await reader.read())[-1] == "408"
    writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [PUT + b"xx"],
        [PUT, b"xx"],
        [PUT + b"x", b"x"],
        [CHUNKED + b"1\r\nx\r\n0\r\n\r\n"],
        [CHUNKED + b"1\r\nx\r\n0\r\n", b"\r\n"],
    ],
)
async def test_a_connection_that_is_idle_behind_a_body_stays(
    served: Serve, pieces: list[bytes]
) -> None:
    """It owes nobody a head, however its body came."""
    app = web.Application()
    app.router.add_route("*", "/", hello)
    one = await served(app, head_timeout=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02)  # a segment of its own
    await reader.readuntil(b"hello")
    # A head that has begun now is late: one that had begun before would have been, too.
    assert codes(await talk(one.port, b"GET")) == ["408"]
    writer.write(PUT + b"xx")
    async with asyncio.timeout(10):
        await reader.readuntil(b"hello")
    writer.close()


@pytest.mark.parametrize("before", [b"\r\ntraceparent: x", b"\n\r\ntraceparent: x", b"\r\nX: y"])
async def test_a_request_line_behind_stray_header_lines_is_never_answered(
    served: Serve, tmp_path: Path, before: bytes
) -> None:
    """Not from memory either: lines that change nothing are left out of its key, but not those before the first one."""
    place(tmp_path / "config", "123")
    one = await served(reader_app(tmp_path / "config"))
    ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for blank in (b"", b"\r\n", b"\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        for _ in range(4):
            writer.write(blank + ask)
            await reader.readuntil(b'"123"')
        writer.close()
        assert codes(await talk(one.port, before + b"\r\n" + ask)) == ["400"]


async def test_a_date_alone_is_compared_for_equality(served: Serve, tmp_path: Path) -> None:
    """As nginx does: the time of a file goes back, with `mv`, `cp -p` or a rollback."""
    config = place(tmp_path / "config", "123")
    one = await served(reader_app(config))
    modified = config.stat().st_mtime
    for shift, status in ((0, "304"), (60, "200"), (-60, "200")):
        date = representation.http_date(min(modified + shift, time.time()))
        ask = f"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nIf-Modified-Since: {date}\r\n\r\n"
        assert codes(await talk(one.port, ask.encode())) == [status]


async def test_a_broken_chunk_is_the_clients_fault_in_any_application(
    served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """400 as well where a user's handler reads the body and knows nothing of our errors; no traceback."""
    app = web.Application()
    app.router.add_route("*", "/", hello)
    one = await served(app)
    answer = await talk(one.port, CHUNKED + b"zz\r\n")
    assert codes(answer) == ["400"]
    assert b"application/problem+json" in answer
    assert caplog.records == []
