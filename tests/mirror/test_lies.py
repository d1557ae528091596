"""Each source in front of an engine that lies: the last good files stay, memory is bounded, and it is told."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mirror.conftest import StartMirror
from mirror.fakes.consul import Consul
from mirror.fakes.kube import KubeApi
from mirror.fakes.liar import LIES, Liar
from mirror.fakes.vault import Vault
from sidecar.http.apps.reader import reader_app
from sidecar.mirror.sources import factory
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Etcd, Redis
from support.git_servers import Backend, Project

MAX_BYTES = 1 << 20
#: What the kernel and the buffers of both ends may hold beside it.
IN_FLIGHT_BYTES = 16 << 20


class Engine(NamedTuple):
    """An honest engine with one file `a`."""

    port: int
    address: str
    """With {port} in place of its port."""
    put: Callable[[str], Awaitable[object]]
    """Change the file."""


Start = Callable[[Path], "AsyncIterator[Engine]"]


async def web_engine(directory: Path) -> AsyncIterator[Engine]:
    """An archive: of a plain file nobody but the gate can know whether it is the page of a portal."""
    content = [archive("1")]

    async def get(request: web.Request) -> web.Response:
        return web.Response(body=content[0], headers={"ETag": f'"{hash(content[0])}"'})

    async def put(value: str) -> None:
        content[:] = [archive(value)]

    app = web.Application()
    app.router.add_get("/set.tar", get)
    async with TestServer(app) as server:
        yield Engine(server.port or 0, "http://127.0.0.1:{port}/set.tar#interval=0.02", put)


def archive(value: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.size = len(value)
        tar.addfile(member, io.BytesIO(value.encode()))
    return made.getvalue()


async def vault_engine(directory: Path) -> AsyncIterator[Engine]:
    vault = Vault()
    (directory / "token").write_text(vault.token)

    async def put(value: str) -> None:
        vault.versions.append({"a": value})

    async with vault.server as server:
        await put("1")
        address = f"vault+http://127.0.0.1:{{port}}/secret/team/app#interval=0.02&token_file={directory}/token"
        yield Engine(server.port or 0, address, put)


async def consul_engine(directory: Path) -> AsyncIterator[Engine]:
    consul = Consul()

    async def put(value: str) -> None:
        consul.put(app__a=value)

    async with consul.server as server:
        await put("1")
        yield Engine(server.port or 0, "consul+http://127.0.0.1:{port}/app/#wait=1", put)


async def kube_engine(directory: Path) -> AsyncIterator[Engine]:
    api = KubeApi()

    async def put(value: str) -> None:
        api.put("configmaps", "app", {"a": value})

    async with api.server as server:
        await put("1")
        address = "kube://shop/configmaps#server=http://127.0.0.1:{port}&recheck=0.2"
        yield Engine(server.port or 0, address, put)


async def reader_engine(directory: Path) -> AsyncIterator[Engine]:
    volume = Volume(directory / "upstream")

    async def put(value: str) -> None:
        await volume.publish({"a": value})

    await put("1")
    async with TestServer(reader_app(f"{volume.path}/")) as server:
        yield Engine(server.port or 0, "sidecar+http://127.0.0.1:{port}/#wait=1", put)


async def etcd_engine(directory: Path) -> AsyncIterator[Engine]:
    etcd = Etcd(directory)
    etcd.start()

    async def put(value: str) -> None:
        etcd.ctl("put", "/app/a", value)

    try:
        await put("1")
        yield Engine(etcd.port, "etcd+http://127.0.0.1:{port}/app/#recheck=0.2", put)
    finally:
        etcd.kill()


async def redis_engine(directory: Path) -> AsyncIterator[Engine]:
    redis = Redis(directory)
    redis.start()

    async def put(value: str) -> None:
        redis.command("HSET", "app", "a", value)

    try:
        await put("1")
        yield Engine(redis.port, "redis://127.0.0.1:{port}/0/app#ping=0.1", put)
    finally:
        redis.kill()


async def git_engine(directory: Path) -> AsyncIterator[Engine]:
    backend, project = Backend(directory / "srv"), Project(directory / "srv" / "project")

    async def put(value: str) -> None:
        project.commit(a=value)

    await backend.server.start_server(auto_decompress=False)
    try:
        await put("1")
        address = "git+http://127.0.0.1:{port}/project/.git?ref=main#interval=0.05"
        yield Engine(backend.server.port or 0, address, put)
    finally:
        await backend.server.close()


#: Each source, and which of the answers on a connection is the lie: the present state, a watch, a transfer.
CASES = [
    pytest.param(web_engine, 0, id="web"),
    pytest.param(vault_engine, 0, id="vault"),
    pytest.param(consul_engine, 0, id="consul"),
    pytest.param(kube_engine, 0, id="kube, list"),
    pytest.param(kube_engine, 1, id="kube, watch"),
    pytest.param(reader_engine, 0, id="reader, list"),
    pytest.param(reader_engine, 1, id="reader, file"),
    pytest.param(etcd_engine, 0, id="etcd, range"),
    pytest.param(etcd_engine, 1, id="etcd, watch"),
    pytest.param(redis_engine, 4, id="redis, HGETALL"),
    pytest.param(git_engine, 0, id="git"),
]


@pytest.mark.parametrize(("start", "true_answers"), CASES)
async def test_an_engine_that_lies_takes_nothing_away(
    start: Start, true_answers: int, tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """Lie after lie, and then the truth: what was changed meanwhile is published."""
    liar = Liar()
    async with asynccontextmanager(start)(tmp_path) as engine:
        await liar.start(engine.port)
        limits = f"&timeout={1.0 if start is git_engine else 0.25}&max_bytes={MAX_BYTES}"
        placed = factory.make_source(engine.address.format(port=liar.port) + limits)
        running = start_mirror(placed.source, pause=lambda attempt, error: 0.02)
        await eventually(lambda: running.is_complete)
        file = Path(volume.path) / "a"
        try:
            for number, (name, lie) in enumerate(LIES.items(), 2):
                before = file.read_text()
                await liar.tell(lie, true_answers)
                await engine.put(str(number))
                await eventually(lambda: liar.told > 0 and running.problem is not None)
                assert file.read_text() in (before, str(number)), name
                assert liar.sent < liar.told * (MAX_BYTES + IN_FLIGHT_BYTES), name
                await liar.tell(None)
                await eventually(lambda value=str(number): file.read_text() == value)
        finally:
            await liar.close()
