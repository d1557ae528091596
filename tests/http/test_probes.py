"""Probes and metrics for other servers: the same answers, over ASGI, without aiohttp."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import sidecar
from sidecar.process import lifecycle


async def ask(
    app: Any, path: str, method: str = "GET", **scope: object
) -> tuple[int, dict[str, str], bytes]:
    """What an ASGI server gets: status, headers, body (ASGI 3.0, HTTP connection scope)."""
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await app({"type": "http", "method": method, "path": path, **scope}, None, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, body["body"]


@pytest.fixture
def health() -> sidecar.Health:
    health = sidecar.Health()
    health.add("settings", live=lambda: None, ready=lambda: "nothing published yet")
    return health


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
@pytest.mark.parametrize("draining", [False, True])
async def test_asgi_answers_what_aiohttp_answers(
    health: sidecar.Health, path: str, draining: bool
) -> None:
    """One contract, whatever serves it: status, type, checks, and the problem of a failure."""
    lifecycle._LifecycleState.draining = draining
    app = web.Application()
    app.add_routes([*sidecar.health_routes(health), *sidecar.metrics_routes()])
    async with TestClient(TestServer(app)) as client:
        theirs = await client.get(path)
        status, headers, body = await ask(sidecar.health_asgi(health), path)
        wanted = json.loads(await theirs.text())
    wanted.pop("details", None)
    wanted.pop("instance", None)
    assert (status, json.loads(body)) == (theirs.status, wanted)
    assert headers["content-type"].split(";")[0] == theirs.content_type


async def test_metrics_are_those_of_the_process(health: sidecar.Health) -> None:
    """In the format of Prometheus, by both."""
    app = web.Application()
    app.add_routes(sidecar.metrics_routes())
    async with TestClient(TestServer(app)) as client:
        theirs = await client.get("/metrics")
        assert "sidecar_publish_total" in await theirs.text()
    status, headers, body = await ask(sidecar.health_asgi(health), "/metrics")
    assert (status, headers["content-type"]) == (200, theirs.headers["Content-Type"])
    assert b"sidecar_publish_total" in body


async def test_a_mounted_application_finds_its_addresses(health: sidecar.Health) -> None:
    """Starlette leaves the mount in `path` and says it in `root_path`; other methods and paths are told."""
    app = sidecar.health_asgi(health)
    assert (await ask(app, "/ops/livez", root_path="/ops"))[0] == 200
    status, headers, body = await ask(app, "/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0
    status, headers, _ = await ask(app, "/livez", "POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert (await ask(app, "/other"))[0] == 404


async def test_the_life_of_a_server_is_acknowledged(health: sidecar.Health) -> None:
    """uvicorn and hypercorn send `lifespan`, and wait for the answers."""
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": next(events)}

    async def send(event: Any) -> None:
        sent.append(event["type"])

    async with asyncio.timeout(5):
        await sidecar.health_asgi(health)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_an_asgi_program_loads_no_aiohttp() -> None:
    """It has a server of its own."""
    program = "import sys, sidecar; sidecar.health_asgi(sidecar.Health()); sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_no_health_is_refused() -> None:
    """By both, at the call."""
    for make in (sidecar.health_asgi, sidecar.health_routes):
        with pytest.raises(sidecar.ConfigError, match=r"sidecar\.Health"):
            make({"live": True})  # type: ignore[arg-type]
