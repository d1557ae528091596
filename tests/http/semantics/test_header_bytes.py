"""No bytes in any header give a 500 or a traceback: wherever text goes back to bytes, it is put back as it came."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from aiohttp import web

from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from support.httpkit import Serve, place, talk

HEADERS = [
    "Authorization",
    "Connection",
    "Content-Type",
    "Expect",
    "Host",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Last-Event-ID",
    "Origin",
    "Prefer",
    "Range",
    "Referer",
    "Sec-Fetch-Site",
    "Sec-Purpose",
]
MORE_HEADERS = [
    "Accept",
    "Accept-Encoding",
    "Content-Encoding",
    "Cookie",
    "Keep-Alive",
    "Purpose",
    "TE",
    "Trailer",
    "Upgrade",
    "User-Agent",
    "X-Forwarded-For",
    "traceparent",
]
VALUES = [
    b"\xff",
    b'"\xff"',
    b'W/"\x80abc", "\xc3\xa9"',
    b"\xed\xa0\x80",  # a surrogate, which is no UTF-8
    b"http://[\xff",
    b"bearer \xff",
    b"wait=\xff",
    b"bytes=\xff-",
    b"bytes=-0,%s" % (b"9" * 40),
    b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    b"Sun, 06 Nov 0001 08:49:37 -9999",
    b"Sun, 31 Dec 9999 23:59:59 -9999",
    b"x" * 4000,
    b"=;,\"'\\%00%ff%u0000",
    b"2001:db8::1%\xff",
]
READS = ["/", "/files/config"]
WRITES = ["/?content=1"]


@pytest.mark.parametrize(
    ("make", "paths", "headers"),
    [
        (reader_app, READS, HEADERS),
        (writer_app, WRITES, HEADERS),
        pytest.param(
            reader_app,
            [*READS, "/raw", "/files", "/livez", "/metrics", "/nothing"],
            HEADERS + MORE_HEADERS,
            marks=pytest.mark.soak,
        ),
        pytest.param(
            writer_app,
            [*WRITES, "/files/config", "/versions", "/livez", "/nothing"],
            HEADERS + MORE_HEADERS,
            marks=pytest.mark.soak,
        ),
    ],
)
async def test_no_header_gives_a_server_error(
    served: Serve,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[..., web.Application],
    paths: list[str],
    headers: list[str],
) -> None:
    """Each header with each value; twice on one connection, so that the fast path is asked as well."""
    place(tmp_path / "config", "123")
    one = await served(make(tmp_path / "config"))
    limit = asyncio.Semaphore(20)

    async def ask(path: str, name: str, value: bytes) -> str | None:
        host = b"" if name == "Host" else b"Host: a\r\n"
        extra = b"Prefer: wait=0.001\r\n" if path == paths[0] else b""
        head = b"GET %b HTTP/1.1\r\n%b%b%b: %b\r\n" % (
            path.encode(), host, extra, name.encode(), value)  # fmt: skip
        async with limit:
            answer = await talk(
                one.port, 2 * (head + b"\r\n") + head + b"Connection: close\r\n\r\n"
            )
        codes = re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)
        wrong = not codes or any(code.startswith(b"5") for code in codes)
        return f"{path} {name}: {value!r}: {codes}" if wrong else None

    with caplog.at_level(logging.WARNING):
        asked = [ask(*one) for one in product(paths, headers, VALUES)]
        assert [wrong for wrong in await asyncio.gather(*asked) if wrong] == []
    assert [
        r.getMessage() for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR
    ] == []
