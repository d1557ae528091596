"""A client that closes its side after its last request, as `nc` of busybox does at the end of its input, is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.process import metrics
from support.httpkit import Play, Served

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
WRITE = b"GET /?content=new HTTP/1.1\r\nHost: a\r\n\r\n"


async def ask(port: int, *requests: bytes) -> bytes:
    """Send the requests, each after the answer to the one before; close this side; return what comes after that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for request in requests[:-1]:
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b'"')
            await reader.readuntil(b'"')
        writer.write(requests[-1])
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_last_request_is_answered(play: Play, tmp_path: Path, before: int) -> None:
    """The first of a connection by aiohttp, later ones by the fast path; then the server closes as well."""
    config = tmp_path / "config"
    config.write_text("it")

    async def scene(served: Served) -> None:
        for _ in range(20):
            answer = await ask(served.port, *[ASK] * before, ASK)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b'"it"')

    play(reader_app(config), scene)


def test_all_requests_of_a_pipeline_are_answered(play: Play, tmp_path: Path) -> None:
    """What came behind them and has no end is not."""
    config = tmp_path / "config"
    config.write_text("it")

    async def scene(served: Served) -> None:
        for rest in (b"", b"GET / HT"):
            answers = await ask(served.port, ASK * 5 + rest)
            assert answers.count(b"HTTP/1.1 200 OK\r\n") == 5
            assert answers.count(b"HTTP/1") == 5

    play(reader_app(config), scene)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_write_is_acknowledged(play: Play, tmp_path: Path, before: int) -> None:
    """By whichever of the two it is done."""
    config = tmp_path / "config"

    async def scene(served: Served) -> None:
        for _ in range(5):
            config.unlink(missing_ok=True)
            answer = await ask(served.port, *[WRITE.replace(b"new", b"old")] * before, WRITE)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert config.read_text() == "new"

    play(writer_app(config), scene)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost:",
        b"PUT /files/x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    ],
)
def test_an_unfinished_request_is_not(play: Play, tmp_path: Path, request_: bytes) -> None:
    """The rest of it can never come: the connection is closed at once, and nothing is published."""

    async def scene(served: Served) -> None:
        async with asyncio.timeout(5):
            await ask(served.port, request_)
        assert not list(tmp_path.rglob("x"))

    play(writer_app(tmp_path / "config"), scene)


@pytest.mark.parametrize("before", [0, 2])
def test_who_waits_for_a_change_is_taken_for_gone(play: Play, tmp_path: Path, before: int) -> None:
    """Most that end while they wait have ended for good: ten thousand of them would be kept for nobody."""
    config = tmp_path / "config"
    config.write_text("it")

    async def scene(served: Served) -> None:
        first = (await ask(served.port, ASK)).partition(b'ETag: "')[2].partition(b'"')[0]
        wait = (
            b'GET / HTTP/1.1\r\nHost: a\r\nPrefer: wait=15\r\nIf-None-Match: "%b"\r\n\r\n' % first
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        try:
            for _ in range(before):
                writer.write(ASK)
                await reader.readuntil(b'"it"')
            writer.write(wait)
            while metrics.SUBSCRIBERS._value.get() != 1:
                await asyncio.sleep(0.005)
            writer.write_eof()
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            while metrics.SUBSCRIBERS._value.get() != 0:
                await asyncio.sleep(0.005)
        finally:
            writer.close()
            await writer.wait_closed()

    play(reader_app(config), scene)
