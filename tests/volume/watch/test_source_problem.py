"""A publisher that copies a content from elsewhere says when its source is stale, and readers are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from sidecar import Watch, _errors
from sidecar.http.apps.reader import reader_app
from sidecar.volume.content import source_state
from sidecar.volume.volume import Volume
from support import Eventually

REASONS = {"etcd+http://etcd:2379/app/": "no answer within 10 s"}
SAID = "the source etcd+http://etcd:2379/app/ is stale: no answer within 10 s"


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


@pytest.mark.parametrize("name", ["", "a"], ids=["set", "file"])
async def test_a_watch_is_stale_while_the_source_is(
    volume: Volume, eventually: Eventually, name: str
) -> None:
    """The content stays; staleness begins and ends with what the publisher says."""
    await volume.publish({"a": "1"})
    async with Volume(volume.path).watch() if not name else _watch_file(volume, name) as watch:
        await watch.looked()
        assert watch.stale is None
        await volume.mark_source(REASONS)
        await eventually(lambda: watch.stale == SAID)
        assert watch.snapshot is not None
        await volume.mark_source({})
        await eventually(lambda: watch.stale is None)


def _watch_file(volume: Volume, name: str) -> Watch[Any]:
    return Watch(f"{volume.path}/{name}")


async def test_a_version_that_comes_while_the_source_is_stale_is_shown(
    volume: Volume, eventually: Eventually
) -> None:
    """Another source may be well, or somebody publishes by hand."""
    await volume.publish({"a": "1"})
    await volume.mark_source(REASONS)
    async with volume.watch() as watch:
        await eventually(lambda: watch.stale == SAID)
        await volume.publish({"a": "2"})
        await eventually(lambda: watch.snapshot is not None and watch.snapshot.text("a") == "2")
        assert watch.stale == SAID


async def test_clients_of_a_reader_are_told(volume: Volume, eventually: Eventually) -> None:
    """By the header, and by an event; the answer is the last good content."""
    await volume.put("a", "1")
    app = reader_app(Path(volume.path) / "a")
    async with TestClient(TestServer(app)) as client:
        async with client.get("/events") as events:
            await volume.mark_source(REASONS)
            async for line in events.content:
                if line == b"event: stale\n":
                    break
            assert SAID.encode() in await events.content.readline()
        async with client.get("/") as answer:
            assert answer.headers["Sidecar-Stale"] == SAID
            assert await answer.json() == "1"
        await volume.mark_source({})

        async def is_fresh() -> bool:
            async with client.get("/") as answer:
                return "Sidecar-Stale" not in answer.headers

        while not await is_fresh():
            pass


async def test_nothing_is_written_where_nothing_changes(volume: Volume) -> None:
    """Only transitions are written, and what cannot be written is an error of the publisher's."""
    await volume.publish({"a": "1"})
    told = Path(volume.path) / "..source.json"
    await volume.mark_source({})
    assert not told.exists()
    await volume.mark_source(REASONS)
    assert source_state.parse(told.read_bytes()).reasons == REASONS
    with pytest.raises(TypeError):
        await volume.mark_source(["etcd"])  # type: ignore[arg-type]
    with pytest.raises(_errors.VolumeUnavailable):
        await Volume("/proc/nothing").mark_source(REASONS)


@pytest.mark.parametrize(
    "planted",
    [
        b"",
        b"[]",
        b'{"reasons": 1}',
        b'{"reasons": {"a": "b"}}',
        b"\xff",
        b"x" * 100_000,
        b'{"reasons": {"a": ' + b"[" * 1000 + b"]" * 1000 + b'}, "since": "2026-11-30T00:00:00"}',
    ],
)
async def test_what_a_neighbour_plants_there_says_nothing(
    volume: Volume, eventually: Eventually, planted: bytes
) -> None:
    """Nor does a link, or a FIFO at which a reader would wait."""
    await volume.publish({"a": "1"})
    told = Path(volume.path) / "..source.json"
    told.write_bytes(planted)
    async with volume.watch() as watch:
        await watch.looked()
        assert (watch.snapshot is not None, watch.stale) == (True, None)


@pytest.mark.parametrize("kind", ["link", "fifo"])
async def test_what_is_no_file_says_nothing(volume: Volume, tmp_path: Path, kind: str) -> None:
    await volume.publish({"a": "1"})
    told = Path(volume.path) / "..source.json"
    if kind == "fifo":
        os.mkfifo(told)
    else:
        elsewhere = tmp_path.parent / "elsewhere.json"
        elsewhere.write_bytes(source_state.SourceState(REASONS, 1.0).json())
        told.symlink_to(elsewhere)
    async with volume.watch() as watch:
        await watch.looked()
        assert (watch.snapshot is not None, watch.stale) == (True, None)
