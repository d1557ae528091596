"""Ten thousand changes while the server is killed fifty times: the state at the end is exact, and none went back."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import urllib.request
from pathlib import Path

import pytest

from mirror.conftest import StartMirror
from sidecar.mirror.sources.etcd import EtcdSource
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Etcd

pytestmark = pytest.mark.soak

CHANGES = 10_000
KILLS = 50
KEYS = 20


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def change(etcd: Etcd, key: str, value: str | None) -> None:
    """Write or delete a key as another client does."""
    method = "deleterange" if value is None else "put"
    body = {"key": encoded(f"/app/{key}")} | ({} if value is None else {"value": encoded(value)})
    request = urllib.request.Request(f"{etcd.url}/v3/kv/{method}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


async def test_nothing_is_missed_and_nothing_goes_back(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A reader sees the numbers of `last` grow; the set at the end is the model."""
    chance = random.Random(16)
    etcd = Etcd(tmp_path)
    etcd.start()
    model = {"last": "0", **{f"key{number}": "0" for number in range(KEYS)}}
    for key in model:
        change(etcd, key, "0")
    running = start_mirror(
        EtcdSource(f"etcd+{etcd.url}/app/"), allow_shrink=False, shrink_limit=0.0
    )
    await eventually(lambda: running.is_complete)
    seen: list[int] = []

    async def read() -> None:
        async for snapshot in volume.watch():
            seen.append(int(snapshot.text("last")))  # noqa: PERF401 (each as it comes)

    reading = asyncio.create_task(read())
    try:
        for number in range(1, CHANGES + 1):
            if number % (CHANGES // KILLS) == 0:
                await asyncio.to_thread(etcd.kill)
                await asyncio.to_thread(etcd.start)
            key = f"key{chance.randrange(KEYS)}"
            value = None if chance.random() < 0.1 else str(number)
            await asyncio.to_thread(change, etcd, key, value)
            model["last"] = str(number)
            await asyncio.to_thread(change, etcd, "last", str(number))
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
        etcd.kill()
