"""TLS: only receivers whose certificate is trusted get lines, and ours is shown where one is asked for."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from logs.sinks.helpers import batch, opened
from sidecar.logs.sinks.base import SinkUnavailable
from sidecar.logs.sinks.ndjson import NdjsonSink
from sidecar.process.http_endpoint import Tls
from support.httpkit import certificate


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[tuple[str, list[int]]]:
    """A receiver that shows a certificate, and asks for one: its address, and the sizes of what it got."""
    cert, key = certificate(tmp_path, "server")
    ours, _ = certificate(tmp_path, "client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours)
    context.load_cert_chain(cert, key)
    context.verify_mode = ssl.CERT_REQUIRED
    got: list[int] = []

    async def handle(request: web.Request) -> web.Response:
        got.append(len(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}", got
    await runner.cleanup()


async def test_a_receiver_is_trusted_by_its_certificate_and_knows_us_by_ours(
    receiver: tuple[str, list[int]], tmp_path: Path
) -> None:
    url, got = receiver
    sink = NdjsonSink(
        url,
        ca_file=tmp_path / "server.pem",
        cert_file=tmp_path / "client.pem",
        key_file=tmp_path / "client.key",
    )
    async with opened(sink):
        await sink.write(batch("a"))

    assert len(got) == 1


async def test_a_receiver_that_nobody_vouches_for_gets_no_line(
    receiver: tuple[str, list[int]], tmp_path: Path
) -> None:
    """The lines wait: a wrong certificate is an outage, not a loss."""
    url, got = receiver
    sink = NdjsonSink(url, cert_file=tmp_path / "client.pem", key_file=tmp_path / "client.key")
    async with opened(sink):
        with pytest.raises(SinkUnavailable, match="certificate"):
            await sink.write(batch("a"))

    assert got == []


async def serve(port: int, directory: Path) -> web.AppRunner:
    """A receiver with the certificate that lies in the directory now, which trusts the client's that lies there now."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(headers={"Connection": "close"})

    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "client.pem")
    )
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
    return runner


async def test_renewed_certificates_are_used_without_a_restart(tmp_path: Path) -> None:
    """Both sides' certificates are replaced, as cert-manager does each few weeks (fluent-bit#10692, vector#10877)."""
    certificate(tmp_path, "server")
    certificate(tmp_path, "client")
    runner = await serve(0, tmp_path)
    port = runner.addresses[0][1]
    sink = NdjsonSink(
        f"https://127.0.0.1:{port}",
        ca_file=tmp_path / "server.pem",
        cert_file=tmp_path / "client.pem",
        key_file=tmp_path / "client.key",
    )
    async with opened(sink):
        await sink.write(batch("a"))
        await runner.cleanup()
        certificate(tmp_path, "server")
        certificate(tmp_path, "client")
        runner = await serve(port, tmp_path)
        await sink.write(batch("b"))
    await runner.cleanup()


def test_a_pair_that_does_not_fit_yet_leaves_the_last_one_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Between the renewal of the certificate and that of its key there is a moment; it must not end the collection."""
    cert, key = certificate(tmp_path, "client")
    tls = Tls("sink", "https://h", cert_file=cert, key_file=key)
    first = tls.context()
    (tmp_path / "old").mkdir()
    other, other_key = certificate(tmp_path / "old", "other")
    os.replace(other, cert)

    assert tls.context() is first
    assert "stay in use" in caplog.text
    os.replace(other_key, key)
    assert tls.context() is not first
