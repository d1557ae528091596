"""From a change in an engine to the file, as a reader of the volume sees it: `sidecar mirror` beside a real etcd, Redis and NATS.

    python benchmarks/mirroring.py [--changes 200] [--json FILE]

The mirror is a process of its own. A change is the time at which it is sent; each waits until the one before it was seen.
The API server of Kubernetes is the fake of the tests, in this process: it costs nothing that a real one would.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from _options import arguments
from _rows import Row, percentile, report

import sidecar

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import nats

from mirror.fakes.kube import KubeApi
from support.engines import Etcd, Nats, Redis

Change = Callable[[str], Awaitable[None]]
"""Write a value in the engine."""
GOAL_MS = 50.0
PAUSE_SECONDS = 0.02


@asynccontextmanager
async def etcd(directory: Path) -> AsyncIterator[tuple[str, Change]]:
    server = Etcd(directory)
    server.start()
    key = base64.b64encode(b"/app/value").decode()

    def put(value: str) -> None:
        body = json.dumps({"key": key, "value": base64.b64encode(value.encode()).decode()})
        urllib.request.urlopen(f"{server.url}/v3/kv/put", body.encode()).close()

    yield f"etcd+{server.url}/app/", lambda value: asyncio.to_thread(put, value)
    server.kill()


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[tuple[str, Change]]:
    server = Redis(directory)
    server.start()

    async def change(value: str) -> None:
        await asyncio.to_thread(server.command, "HSET", "app", "value", value)

    yield f"redis://127.0.0.1:{server.port}/0/app", change
    server.kill()


@asynccontextmanager
async def in_nats(directory: Path) -> AsyncIterator[tuple[str, Change]]:
    server = Nats(directory)
    server.start()
    client = await nats.connect(server.url)
    keys = await client.jetstream().create_key_value(bucket="app")

    async def change(value: str) -> None:
        await keys.put("value", value.encode())

    yield f"{server.url}/app", change
    await client.close()
    server.kill()


@asynccontextmanager
async def kube(_: Path) -> AsyncIterator[tuple[str, Change]]:
    api = KubeApi()
    await api.server.start_server()

    async def change(value: str) -> None:
        api.put("configmaps", "app", {"value": value})

    yield f"kube://shop/configmaps#server={api.url}", change
    await api.server.close()


ENGINES = {"etcd": etcd, "Redis": redis, "NATS": in_nats, "a fake API server": kube}


async def measure(name: str, changes: int) -> list[float]:
    """Return milliseconds from the begin of a change to the content in a reader's memory."""
    delays: list[float] = []
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        path = directory / "shared"
        path.mkdir()
        async with ENGINES[name](directory) as (address, change):
            await change("0")
            mirror = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sidecar", "mirror", address, "--path", path),
                *("--log-level", "error"),
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            try:
                async with aclosing(aiter(sidecar.watch(path / "value"))) as snapshots:
                    await anext(snapshots)
                    for _ in range(changes):
                        sent = str(time.monotonic_ns())
                        await change(sent)
                        async for snapshot in snapshots:
                            if snapshot.data.decode() == sent:
                                break
                        delays.append((time.monotonic_ns() - int(sent)) / 1e6)
                        await asyncio.sleep(PAUSE_SECONDS)
            finally:
                mirror.terminate()
                await mirror.wait()
    return delays


def main() -> None:
    options = arguments(__doc__, changes=200).parse_args()
    rows = []
    for name in ENGINES:
        delays = asyncio.run(measure(name, options.changes))
        for percent in (50, 99):
            goal = GOAL_MS if percent == 99 else None
            what = f"sidecar mirror: change in {name} to file, p{percent}"
            rows.append(Row(what, percentile(delays, percent), "ms", goal))
    report(rows, options.json)


if __name__ == "__main__":
    main()
