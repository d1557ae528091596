"""Requests that are almost right: an answer, no 5xx, no hang, no traceback."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from aiohttp import web

import sidecar
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from support.httpkit import Serve

SEEDS = [
    b"GET /?content=abc%20d HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nIf-None-Match: *\r\n\r\nhello",
    (b'PUT /files/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nIf-Match: W/"b"\r\n\r\n'
    b"5\r\nhello\r\n0\r\n\r\n"),
    (b"PUT /files/c HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: 5\r\n\r\nhello"),
    (b'GET /files/config HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\nIf-Range: "x"\r\n'
    b"Prefer: wait=0.01\r\nIf-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT\r\n\r\n"),
    b'GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: "a", W/"b"\r\nPrefer: wait=0\r\n\r\n',
    b'POST /rollback HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{"to": "x"}',
    b"DELETE /files/a?dry_run=1 HTTP/1.1\r\nHost: x\r\nIf-Match: *\r\n\r\n",
    b"GET /versions?name=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n",
]  # fmt: skip
WORDS = [b"%2e%2e", b"\r\n", b"..", b"\0", b"%ff", b"%", b'"', b",", b"*", b"9" * 30, b"\xff"]
LAST = b"\r\n\r\nGET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def mutated(chance: random.Random) -> bytes:
    """One of the seeds with a few bytes changed, lost, doubled or put in."""
    text = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text) + 1)
        match chance.randrange(4):
            case 0:
                text[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del text[at : at + chance.randint(1, 5)]
            case 2:
                start = chance.randrange(len(text) + 1)
                text[at:at] = text[start : start + chance.randint(1, 30)]
            case _:
                text[at:at] = chance.choice(WORDS)
    return bytes(text)


async def first_status(port: int, request: bytes) -> int | None:
    """The status of the first answer, None if the server waits for more or says nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request + LAST)
        async with asyncio.timeout(0.25):
            line = await reader.readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/1") else None
    except (TimeoutError, ConnectionError):
        return None
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("name", ["reader", "writer"])
async def test_mutated_requests_get_an_answer_and_no_traceback(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Some hundred, the same each time; silence is right where the rest of a body is missing."""
    config = tmp_path / "config"
    await sidecar.publish_file(config, "123")
    app: web.Application = reader_app(config) if name == "reader" else writer_app(config)
    one = await served(app)
    chance = random.Random(name)
    statuses = []
    for _ in range(250):
        request = mutated(chance)
        statuses.append(await first_status(one.port, request))
        assert (statuses[-1] or 0) < 500, request
    assert statuses.count(None) < 15
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
