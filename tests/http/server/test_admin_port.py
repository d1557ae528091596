"""The admin port: probes and metrics apart from what is served, from the start to the end of the drain."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector, web

import sidecar
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.server.serve import serve
from support import StartProcess
from support.httpkit import Served, place, problem, start_serving

PROBES = ("/livez", "/readyz", "/startupz")


@asynccontextmanager
async def with_admin(
    app: web.Application, caplog: pytest.LogCaptureFixture, **options: Any
) -> AsyncIterator[tuple[Served, str]]:
    """Serve an application with an admin port; yield it, and the address of that port."""
    caplog.set_level("INFO")
    one = await start_serving(app, admin_port=0, admin_host="127.0.0.1", **options)
    try:
        yield one, re.findall(r"the admin port is (\S+)", caplog.text)[-1]
    finally:
        await one.stop()


async def test_probes_and_metrics_are_there_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a token on the admin port, and nothing else is there; with one on the port of the data, they are not."""
    (tmp_path / "token").write_text("secret")
    app = reader_app(place(tmp_path / "config", "123"), token_file=tmp_path / "token")
    async with with_admin(app, caplog) as (one, admin), ClientSession() as http:
        for path in PROBES:
            answer = await http.get(admin + path)
            assert (answer.status, "details" in await answer.json()) == (200, True)
            await problem(await http.get(one.url + path), 404, "not-found")
        answer = await http.get(f"{admin}/metrics")
        assert "sidecar_content_info" in await answer.text()
        headers = {"Authorization": "Bearer secret"}
        await problem(await http.get(f"{one.url}/metrics", headers=headers), 404, "not-found")
        described = await (await http.get(f"{one.url}/openapi.json", headers=headers)).json()
        assert not {*PROBES, "/metrics"} & described["paths"].keys()
        for path in ("/", "/raw", "/files", "/events", "/ui", "/openapi.json"):
            await problem(await http.get(admin + path, headers=headers), 404, "not-found")
        assert (await http.get(f"{one.url}/", headers=headers)).status == 200


async def test_it_works_beside_a_unix_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data is then in no network at all."""
    app = reader_app(place(tmp_path / "config", "123"))
    options = {"port": None, "unix_socket": tmp_path / "socket"}
    async with with_admin(app, caplog, **options) as (_, admin):
        async with ClientSession() as http:
            assert (await http.get(f"{admin}/readyz")).status == 200
        async with ClientSession(connector=UnixConnector(str(tmp_path / "socket"))) as http:
            assert await (await http.get("http://x/")).json() == "123"


async def test_an_application_of_a_user_has_its_checks_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also without routes of probes; those that it has are off on its own port."""
    app = web.Application()
    app.add_routes(sidecar.health_routes())
    async with with_admin(app, caplog) as (one, admin), ClientSession() as http:
        assert (await http.get(f"{admin}/livez")).status == 200
        assert (await http.get(f"{one.url}/livez")).status == 404


async def test_it_has_the_checks_of_all_probes_that_moved_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of a `Health` that was given to the routes, and those of applications beneath the one that is served."""
    given = sidecar.Health()
    remove = given.add("database", ready=lambda: "it is away")
    app = web.Application()
    app.add_routes(sidecar.health_routes(given))
    app.add_subapp("/config/", reader_app(place(tmp_path / "config", "123")))
    async with with_admin(app, caplog) as (_, admin), ClientSession() as http:
        said = await problem(await http.get(f"{admin}/readyz"), 503, "not-ready")
        name = f"content of {tmp_path / 'config'}"
        assert said["checks"] == {"database": "it is away", name: "ok"}
        assert name in said["details"]
        remove()
        assert (await http.get(f"{admin}/readyz")).status == 200


async def test_it_is_not_ready_before_the_application_listens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """kubelet asks from the start on: a Pod that is ready too early gets requests that are refused."""
    caplog.set_level("INFO")
    begun, go = asyncio.Event(), asyncio.Event()

    async def start(_: web.Application) -> None:
        begun.set()
        await go.wait()

    app = web.Application()
    app.on_startup.append(start)
    listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(
            app,
            host="127.0.0.1",
            port=0,
            admin_port=0,
            admin_host="127.0.0.1",
            drain_delay=0.0,
            ready=lambda _: listening.set_result(None),
        )
    )
    async with asyncio.timeout(20), ClientSession() as http:
        await begun.wait()
        admin = re.findall(r"the admin port is (\S+)", caplog.text)[-1]
        await problem(await http.get(f"{admin}/startupz"), 503, "not-started")
        await problem(await http.get(f"{admin}/readyz"), 503, "not-ready")
        assert (await http.get(f"{admin}/livez")).status == 200
        go.set()
        await listening
        for path in PROBES:
            assert (await http.get(admin + path)).status == 200
        serving.cancel()
        await asyncio.wait({serving})


async def test_it_says_that_the_process_drains_until_the_last_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """503 at /readyz and 200 at /livez, while a request is still being answered and the port of the data is closed."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        begun.set()
        await go.wait()
        return web.Response(text="done")

    app = web.Application()
    app.router.add_get("/", slow)
    async with with_admin(app, caplog, drain_timeout=30.0) as (one, admin), ClientSession() as http:
        assert (await http.get(f"{admin}/readyz")).status == 200
        running = asyncio.ensure_future(http.get(f"{one.url}/"))
        async with asyncio.timeout(20):
            await begun.wait()
            ending = asyncio.create_task(one.stop())
            while (await http.get(f"{admin}/readyz")).status != 503:
                await asyncio.sleep(0.01)
            while True:  # until the port of the data is closed
                try:
                    await (await asyncio.open_connection("127.0.0.1", one.port))[1].drain()
                except OSError:
                    break
                await asyncio.sleep(0.01)
            assert (await http.get(f"{admin}/readyz")).status == 503
            assert (await http.get(f"{admin}/livez")).status == 200
            assert not running.done()
            go.set()
            assert await (await running).text() == "done"
            await ending
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", int(admin.rsplit(":", 1)[1]))


async def test_a_busy_admin_port_is_said_at_the_start(tmp_path: Path) -> None:
    """Before anything is served: as for the port itself."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    busy = server.sockets[0].getsockname()[1]
    with pytest.raises(sidecar.ConfigError, match=str(busy)):
        await serve(
            writer_app(tmp_path / "config"),
            host="127.0.0.1",
            port=0,
            admin_port=busy,
            admin_host="127.0.0.1",
        )
    server.close()


@pytest.mark.parametrize("admin_host", ["127.0.0.1", "0.0.0.0", ""])
async def test_it_is_not_the_port_of_the_data(free_port: int, admin_host: str) -> None:
    """Nor does an address of its own help, where one of both is that of all."""
    with pytest.raises(sidecar.ConfigError, match=f"both {free_port}"):
        await serve(
            web.Application(),
            host="127.0.0.1",
            port=free_port,
            admin_host=admin_host,
            admin_port=free_port,
        )


def test_workers_share_it_as_they_share_the_port(
    sidecar_process: StartProcess, tmp_path: Path, free_port: int
) -> None:
    """Its metrics are the sum over all of them, and its probes speak for all."""
    process = sidecar_process(
        *("read", "--path", tmp_path / "config", "--missing=ok", "--host=127.0.0.1", "--port=0"),
        *("--workers=2", f"--admin-port={free_port}", "--admin-host=127.0.0.1", "--drain-delay=0"),
        until="all 2 workers have started",
    )

    async def ask() -> None:
        async with ClientSession() as http:
            data = re.findall(r"listening on (http://127\.0\.0\.1:\d+)", process.output)[0]
            for _ in range(8):
                assert (await http.get(f"{data}/", headers={"Connection": "close"})).status == 200
            counted, metrics_url = 0.0, f"http://127.0.0.1:{free_port}/metrics"
            async with asyncio.timeout(20):
                while counted < 8:  # an answer counts once it has left
                    text = await (await http.get(metrics_url)).text()
                    found = re.findall(r'requests_total\{code="200"\} (\S+)', text)
                    counted = float(found[0]) if found else 0.0
            answer = await http.get(f"http://127.0.0.1:{free_port}/readyz")
            assert answer.status == 200
            assert (await http.get(f"{data}/readyz")).status == 404

    asyncio.run(ask())
    assert process.stop() == 0
