"""What tests of applications import by name: clients, raw sockets, problems."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from sidecar.http.server.serve import serve
from sidecar.volume.content.snapshot import etag, to_bytes, version_of

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application], Awaitable[Client]]


def place(path: Path, content: bytes | str) -> Path:
    """Replace a file as a publisher does, a minute ago: the watch takes it at the first look."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name("..draft")
    draft.write_bytes(to_bytes(content))
    past = time.time() - 60
    os.utime(draft, (past, past))
    draft.rename(path)
    return path


def tag(content: bytes | str) -> str:
    """The entity tag that writer and reader give it."""
    return etag(version_of(to_bytes(content)))


async def problem(answer: ClientResponse, status: int, kind: str) -> dict[str, Any]:
    """Check that an answer is this problem, in the form of RFC 9457, and return it."""
    body = await answer.json(content_type="application/problem+json")
    assert (answer.status, body["status"], body["type"]) == (status, status, f"/problems/{kind}")
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in await answer.text()
    return dict(body)


@dataclass
class Served:
    """An application that `serve` runs, on a free port of this machine."""

    addresses: list[str]
    task: asyncio.Task[None]
    ended: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def stop(self) -> None:
        """Cancel it, as `run` does at SIGTERM, and wait for its end."""
        self.task.cancel()
        await asyncio.wait({self.task})
        if not self.task.cancelled():
            self.task.result()  # an end that fails


Serve = Callable[..., Awaitable[Served]]
Play = Callable[[web.Application, Callable[[Served], Awaitable[None]]], None]


async def start_serving(app: web.Application, **options: Any) -> Served:
    """Serve `app` on a free port until `stop`."""
    up: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
    options = {"host": "127.0.0.1", "port": 0, "drain_delay": 0.0, **options}
    task = asyncio.create_task(serve(app, ready=lambda urls: up.set_result([*urls]), **options))
    either: set[asyncio.Future[Any]] = {up, task}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    return Served(up.result(), task)


async def talk(port: int, request: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(15):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def certificate(directory: Path, name: str, of: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """Make a self-signed certificate; return the files of it and of its key."""
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
