"""Ten thousand changes while the server is killed fifty times: the state at the end is exact, and none went back."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import nats
import pytest
from nats.aio.client import Client

from mirror.conftest import StartMirror
from sidecar import mirror
from sidecar.mirror.sources.etcd import EtcdSource
from sidecar.mirror.sources.nats import NatsSource
from sidecar.mirror.sources.redis import RedisSource
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Etcd, Nats, Redis, Server

pytestmark = pytest.mark.soak

CHANGES = 10_000
KILLS = 50
KEYS = 20


class Engine(Protocol):
    """A server, the source that follows it, and another client that writes to it."""

    server: Server
    source: mirror.Source

    async def change(self, key: str, value: str | None) -> None:
        """Write or delete a key."""

    async def disconnect(self) -> None:
        """End the connection of the other client."""


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class InEtcd:
    def __init__(self, directory: Path) -> None:
        self.server = self._etcd = Etcd(directory)
        self.source = EtcdSource(f"etcd+{self._etcd.url}/app/")

    async def change(self, key: str, value: str | None) -> None:
        await asyncio.to_thread(self._change, key, value)

    def _change(self, key: str, value: str | None) -> None:
        method = "deleterange" if value is None else "put"
        body = {"key": encoded(f"/app/{key}")}
        body |= {} if value is None else {"value": encoded(value)}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self._etcd.url}/v3/kv/{method}", data)
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    async def disconnect(self) -> None:
        pass


class InRedis:
    """With a log of each command on the disk: else a server that was killed begins with nothing."""

    def __init__(self, directory: Path) -> None:
        self.server = self._redis = Redis(directory, "--appendonly", "yes", "--appendfsync", "no")
        self.source = RedisSource(f"redis://127.0.0.1:{self._redis.port}/0/app")

    async def change(self, key: str, value: str | None) -> None:
        words = ("HDEL", "app", key) if value is None else ("HSET", "app", key, value)
        await asyncio.to_thread(self._redis.command, *words)

    async def disconnect(self) -> None:
        pass


class InNats:
    """Killed with all that it has acknowledged on the disk."""

    def __init__(self, directory: Path) -> None:
        config = directory / "nats.conf"
        config.write_text("jetstream { sync_interval: always }\n")
        self.server = self._nats = Nats(directory, "-c", config)
        self.source = NatsSource(f"{self._nats.url}/app")
        self._client: Client | None = None

    async def change(self, key: str, value: str | None) -> None:
        if self._client is None:
            self._client = await nats.connect(self._nats.url, allow_reconnect=False)
            await self._client.jetstream().create_key_value(bucket="app")
        headers = {"KV-Operation": "DEL"} if value is None else None
        await self._client.jetstream().publish(f"$KV.app.{key}", (value or "").encode(), headers=headers)  # fmt: skip

    async def disconnect(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


@pytest.fixture(params=[InEtcd, InRedis, InNats])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    made: Engine = request.param(tmp_path)
    made.server.start()
    yield made
    await made.disconnect()
    made.server.kill()


async def test_nothing_is_missed_and_nothing_goes_back(
    engine: Engine, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A reader sees the numbers of `last` grow; the set at the end is the model."""
    chance = random.Random(16)
    model = {"last": "0", **{f"key{number}": "0" for number in range(KEYS)}}
    for key in model:
        await engine.change(key, "0")
    running = start_mirror(engine.source, allow_shrink=False, shrink_limit=0.0)
    await eventually(lambda: running.is_complete)
    seen: list[int] = []

    async def read() -> None:
        async for snapshot in volume.watch():
            seen.append(int(snapshot.text("last")))  # noqa: PERF401 (each as it comes)

    reading = asyncio.create_task(read())
    try:
        for number in range(1, CHANGES + 1):
            if number % (CHANGES // KILLS) == 0:
                await engine.disconnect()
                await asyncio.to_thread(engine.server.kill)
                await asyncio.to_thread(engine.server.start)
            key = f"key{chance.randrange(KEYS)}"
            value = None if chance.random() < 0.1 else str(number)
            await engine.change(key, value)
            model["last"] = str(number)
            await engine.change("last", str(number))
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        await eventually(lambda: bool(seen) and seen[-1] == CHANGES, timeout=60.0)
        found = {name: data.decode() for name, data in (await volume.snapshot()).items()}
        assert found == model
        assert seen == sorted(seen)
    finally:
        reading.cancel()
