"""TLS: only receivers whose certificate is trusted get lines, and ours is shown where one is asked for."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from logs.sinks.helpers import batch, opened
from sidecar.logs.sinks.base import SinkUnavailable
from sidecar.logs.sinks.ndjson import NdjsonSink


def certificate(directory: Path, name: str, of: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-addext",
            f"subjectAltName={of}",
            "-keyout",
            str(key),
            "-out",
            str(cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


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
