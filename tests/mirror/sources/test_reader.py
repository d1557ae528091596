"""A mirror of a mirror: the files of a real reader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from mirror.conftest import StartMirror
from sidecar.http.apps.reader import reader_app
from sidecar.mirror.sources import factory
from sidecar.mirror.sources.reader import ReaderSource
from sidecar.volume.volume import Volume
from support import Eventually


@pytest.fixture
def upstream(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "upstream")


@pytest.fixture
async def server(upstream: Volume) -> AsyncIterator[TestServer]:
    await upstream.publish({"a": "1", "dir/b c": "2"})
    made = TestServer(reader_app(f"{upstream.path}/"))
    await made.start_server()
    yield made
    await made.close()


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_each_set_is_mirrored_as_a_whole(
    server: TestServer, upstream: Volume, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """With the same version: the entity tag of a content is the same on each level of the tree."""
    running = start_mirror(ReaderSource(f"sidecar+{server.make_url('/')}"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b c": "2"}
    published = await upstream.publish({"a": "2", "c": "3"})
    await eventually(lambda: running.version == published.version)
    assert await files(volume) == {"a": "2", "c": "3"}


async def test_staleness_travels_down(
    server: TestServer, upstream: Volume, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:  # fmt: skip
    """A reader whose own source is away is alive, and its content is not: its mirror tells its readers, too."""
    running = start_mirror(
        ReaderSource(f"sidecar+{server.make_url('/')}", wait=1.0), stale_after=3.0
    )
    await eventually(lambda: running.is_complete)
    await upstream.mark_source({"etcd": "away"})
    async with volume.watch() as watch:
        await eventually(lambda: "is stale" in (watch.stale or ""))


def test_an_address_makes_a_reader_source() -> None:
    placed = factory.make_source("sidecar+http://mirror:8081/#into=sub&wait=5")
    assert repr(placed.source) == "<ReaderSource sidecar+http://mirror:8081/>"
    assert placed.into == "sub"
