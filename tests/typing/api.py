"""What a user's type checker has to infer. Nothing runs here: `test_typing.py` has mypy read it.

A `type: ignore` marks what must be refused; strict mode complains about each one that is not needed.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, assert_type

from aiohttp import web

import sidecar
from sidecar import sync, testing


@dataclass
class Settings:
    colour: str


def parse(snapshot: sidecar.Snapshot[Any]) -> Settings:
    return Settings(snapshot.text("colour"))


async def publishing(volume: sidecar.Volume) -> None:
    done = await volume.publish({"a": "text", "b": b"bytes"}, if_match='"1234"')
    assert_type(done, sidecar.Publication)
    assert_type(done.version, str)
    assert_type(await volume.put("a", b"bytes", dry_run=True), sidecar.Publication)
    assert_type(await sidecar.publish_file(Path("/shared/a"), "text"), sidecar.Publication)
    assert_type(await volume.delete("a"), sidecar.Publication | None)
    assert_type(await volume.versions("a"), list[sidecar.Version])
    assert_type(await volume.rollback(done.etag), sidecar.Publication)
    async with volume.stage(limit=1 << 20) as upload:
        assert_type(upload, sidecar.Upload)
        await upload.write(b"chunk")
    await volume.publish("text")  # type: ignore[arg-type]
    await volume.publish({"a": 1})  # type: ignore[dict-item]
    await volume.publish({"a": Path("/m.bin"), "b": upload})
    await volume.put("a", bytearray(b"x"))  # type: ignore[arg-type]
    sidecar.Volume("/shared", max_size="64Mi", gate={"type": "object"})
    sidecar.Volume("/shared", gate=lambda content: content.data.isdigit())
    sidecar.Volume("/shared", 0o644)  # type: ignore[call-arg]


async def reading(volume: sidecar.Volume) -> None:
    snapshot = await volume.snapshot()
    assert_type(snapshot, sidecar.Snapshot[None])
    assert_type(snapshot["a"], bytes)
    assert_type(snapshot.text("a"), str)
    assert_type(snapshot.etag, str)
    assert_type(snapshot.changed(None), frozenset[str])
    names: Mapping[str, bytes] = snapshot
    assert_type(len(names), int)
    assert_type((await volume.read("a")).data, bytes)
    snapshot["a"] = b""  # type: ignore[index]


async def watching() -> None:
    async for snapshot in sidecar.watch("/shared"):
        assert_type(snapshot, sidecar.Snapshot[None])
    async for parsed in sidecar.watch(Path("/shared"), schema=parse):
        assert_type(parsed, sidecar.Snapshot[Settings])
        assert_type(parsed.value.colour, str)
    async with aclosing(aiter(sidecar.watch("/shared"))) as versions:
        assert_type(await anext(versions), sidecar.Snapshot[None])
    async with sidecar.Volume("/shared").watch(recheck=5.0) as following:
        assert_type(following, sidecar.Watch[None])
        assert_type(following.snapshot, sidecar.Snapshot[None] | None)
        assert_type(following.stale, str | None)
    assert_type(sidecar.watch("/a", "/b", max_size="1Mi"), sidecar.WatchGroup[None])
    sidecar.watch("/shared", watch="sometimes")  # type: ignore[call-overload]
    sidecar.watch("/shared", unknown=1)  # type: ignore[call-overload]


async def running() -> int:
    ticks = sidecar.every(1.0)
    iterator: AsyncIterator[datetime] = ticks
    async for now in iterator:
        assert_type(now, datetime)
    return 3


def serving() -> None:
    app = web.Application()
    app.cleanup_ctx.append(sidecar.follow("/shared", recheck=5.0))
    health = sidecar.Health()
    assert_type(health.report("ready").ok, bool)
    app.add_routes([*sidecar.health_routes(health), *sidecar.metrics_routes()])
    sidecar.health_asgi(health)
    app.add_subapp("/files/", sidecar.files_app("/shared"))
    assert_type(app[sidecar.LATEST], sidecar.Latest)
    assert_type(sidecar.reader_app("/shared/a", missing="ok"), web.Application)
    assert_type(sidecar.writer_app("/shared/a", gate=sidecar.Gate(format="json")), web.Application)
    assert_type(sidecar.run(running()), int | None)
    sidecar.run(sidecar.serve(app, host="127.0.0.1", port=8080))
    sidecar.run(running)  # type: ignore[arg-type]


async def failing(volume: sidecar.Volume) -> None:
    try:
        await volume.put("a", "text")
    except sidecar.ContentRefused as error:
        assert_type(error.reasons, tuple[str, ...])
    except sidecar.VersionConflict as error:
        assert_type(error.current, str | None)
    except sidecar.PublishUncertain as error:
        assert_type(error.version, str)
    except OSError as error:  # the tree knows the builtins, too
        assert_type(error, OSError)


def without_an_event_loop(volume: sync.Volume) -> None:
    assert_type(sync.load("/shared/a"), sidecar.Snapshot[None])
    assert_type(sync.load(Path("/shared/a"), schema=parse).value, Settings)
    assert_type(sync.watch("/shared"), sync.Watch[None])
    assert_type(sync.watch("/a", Path("/b"), quiet=0.5), sync.WatchGroup[None])
    for snapshots in sync.watch("/a", "/b", "/c", schema=parse):
        assert_type(snapshots, dict[str, sidecar.Snapshot[Settings]])
    sync.watch("/a", "/b", recheck="1")  # type: ignore[call-overload]
    sync.watch("/a", max_size=None)  # type: ignore[call-overload]
    assert_type(volume.watch(max_size=None), sync.Watch[None])
    with sync.watch("/shared", schema=parse) as watch:
        assert_type(watch, sync.Watch[Settings])
        assert_type(watch.snapshot, sidecar.Snapshot[Settings] | None)
        assert_type(watch.latest.value.colour, str)
        for snapshot in watch:
            assert_type(snapshot, sidecar.Snapshot[Settings])
    assert_type(sync.publish_file(Path("/shared/a"), Path("/m.bin")), sidecar.Publication)
    assert_type(volume.put("a", b"bytes", dry_run=True), sidecar.Publication)
    assert_type(volume.publish({"a": "text", "b": b"bytes"}), sidecar.Publication)
    assert_type(volume.read("a"), sidecar.Content)
    with volume.stage(limit="1Mi") as upload:
        assert_type(upload, sync.Upload)
        upload.write(b"chunk")
    volume.put("a", 1)  # type: ignore[arg-type]


async def in_a_users_tests() -> None:
    async with testing.temporary_volume({"a": "text"}) as volume:
        assert_type(volume, sidecar.Volume)
