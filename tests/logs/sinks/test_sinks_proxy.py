"""Where receivers are reached by a proxy: what the environment says counts, as for other agents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from logs.fakes.ndjson import FakeNdjson
from logs.sinks.helpers import batch, opened
from sidecar._errors import ConfigError
from sidecar.logs.sinks.base import SinkUnavailable
from sidecar.logs.sinks.ndjson import NdjsonSink
from sidecar.process import http_endpoint
from support.httpkit import certificate


@pytest.mark.parametrize(
    ("url", "without", "direct"),
    [
        ("http://loki:3100/x", "", False),
        ("http://loki:3100/x", "loki", True),
        ("http://loki.logs.svc:3100/x", ".svc,other", True),
        ("http://loki.logs.svc/x", "svc", True),
        ("http://loki.svc.example/x", "svc", False),
        ("http://loki/x", "*", True),
        ("http://10.1.2.3/x", "192.168.0.0/16, 10.0.0.0/8", True),
        ("http://10.1.2.3/x", "10.1.2.3", True),
        ("http://11.1.2.3/x", "10.0.0.0/8", False),
        ("http://[fd00::1]:80/x", "fd00::/8", True),
        ("http://localhost:3100/x", "", True),
        ("http://127.0.0.9:3100/x", "", True),
        ("http://[::1]:3100/x", "", True),
        ("https://loki:3100/x", "", True),
    ],
)
def test_the_environment_says_who_is_reached_by_the_proxy(
    url: str, without: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY is for http:// alone; NO_PROXY takes out names, addresses and networks; never this machine itself."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.setenv("NO_PROXY", without)
    assert http_endpoint.proxy(url) == (None if direct else "http://proxy:3128")


def test_a_proxy_without_a_scheme_is_one_by_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """As curl takes it."""
    monkeypatch.setenv("https_proxy", "proxy:3128")
    assert http_endpoint.proxy("https://loki") == "http://proxy:3128"


@pytest.mark.parametrize("value", ["socks5://ada:secret@proxy:1080", "http://", "http://a:port"])
def test_what_can_be_no_proxy_is_refused_at_the_start(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError, match="HTTPS_PROXY names no proxy") as raised:
        NdjsonSink("https://loki")
    assert "secret" not in str(raised.value)


async def test_lines_go_by_the_proxy_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The proxy is told the whole address, and who we are; the log says that there is one."""
    caplog.set_level(logging.INFO)
    async with FakeNdjson() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address.replace("http://", "http://ada:secret@"))
        async with opened(NdjsonSink("http://receiver.test:3100")) as sink:
            await sink.write(batch("a", "b"))
            assert proxy.texts == ["a", "b"]
            headers = proxy.requests[0].headers
            assert headers["Host"] == "receiver.test:3100"
            assert headers["Proxy-Authorization"] == "Basic YWRhOnNlY3JldA=="
            await proxy.refuse()
            with pytest.raises(SinkUnavailable):
                await sink.write(batch("c"))  # by the connection that was open
            with pytest.raises(SinkUnavailable) as raised:
                await sink.write(batch("c"))
    assert f"cannot connect to the proxy {proxy.address}: connection refused" in str(raised.value)
    assert f"is reached by the proxy {proxy.address}" in caplog.text
    assert "secret" not in caplog.text + str(raised.value)


@asynccontextmanager
async def tunnel(target: int | None) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy for TLS, which leads to a port of this machine or refuses: its address, and the heads it got."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if target is None:
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, inner_writer))
            group.create_task(copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()


async def test_tls_goes_through_the_proxy_to_the_receiver_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONNECT: the proxy sees neither lines nor the receiver's token; the receiver not the proxy's password."""
    cert, key = certificate(tmp_path, "server", "DNS:receiver.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    (tmp_path / "token").write_text("for the receiver")
    got: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        got.append(request)
        return web.Response()

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    async with tunnel(runner.addresses[0][1]) as (proxy, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{proxy}")
        sink = NdjsonSink("https://receiver.test", ca_file=cert, token_file=tmp_path / "token")
        async with opened(sink):
            await sink.write(batch("a"))
    await runner.cleanup()

    assert heads[0].startswith("CONNECT receiver.test:443 ")
    assert "Proxy-Authorization: Basic" in heads[0]
    assert "for the receiver" not in heads[0]
    assert got[0].headers["Authorization"] == "Bearer for the receiver"
    assert "Proxy-Authorization" not in got[0].headers


async def test_a_proxy_that_refuses_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lines wait: it is an outage, not a loss."""
    async with tunnel(None) as (proxy, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{proxy}")
        async with opened(NdjsonSink("https://receiver.test")) as sink:
            with pytest.raises(SinkUnavailable) as raised:
                await sink.write(batch("a"))
    assert f"the proxy http://{proxy} answered 407 Who are you" in str(raised.value)
    assert "secret" not in str(raised.value)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()
