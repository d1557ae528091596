"""The newest content in an application of the user's own, and a site of files beside it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import sidecar
from sidecar.http.apps.follow import LATEST, Latest, follow
from sidecar.volume.content.snapshot import Snapshot
from support.httpkit import MakeClient, problem


async def greet(request: web.Request) -> web.Response:
    snapshot = request.app[sidecar.LATEST].snapshot
    return web.json_response({"version": snapshot.version, "at": snapshot.text("at.txt")})


def program(shared: Path) -> web.Application:
    """The second program of the design."""
    app = web.Application()
    app.cleanup_ctx.append(sidecar.follow(shared))
    app.add_routes([web.get("/", greet), *sidecar.health_routes()])
    app.add_subapp("/site/", sidecar.files_app(shared))
    return app


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory with nothing in it yet."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


async def test_a_handler_finds_the_newest_content(client: MakeClient, shared: Path) -> None:
    """`request.app[sidecar.LATEST].snapshot`, from the first request on."""
    done = await sidecar.Volume(shared).publish({"at.txt": "noon", "index.html": "<h1>Hi</h1>"})
    one = await client(program(shared))
    assert await (await one.get("/")).json() == {"version": done.version, "at": "noon"}
    newer = await sidecar.Volume(shared).publish({"at.txt": "one", "index.html": "<h1>Hi</h1>"})
    async with asyncio.timeout(10):
        while (await (await one.get("/")).json())["version"] != newer.version:
            await asyncio.sleep(0.01)


async def test_a_handler_needs_no_case_for_nothing(client: MakeClient, shared: Path) -> None:
    """Before the first content, `snapshot` answers for it: 503, a problem, and when to come back."""
    one = await client(program(shared))
    answer = await one.get("/")
    await problem(answer, 503, "nothing-published")
    assert answer.headers["Retry-After"] == "1"
    assert (await one.get("/readyz")).status == 200


async def test_a_content_can_be_required_for_readiness(client: MakeClient, shared: Path) -> None:
    """`required=True`: for a Pod in which nothing else is behind the same Service."""
    app = web.Application()
    app.cleanup_ctx.append(follow(shared, required=True))
    app.add_routes(sidecar.health_routes())
    one = await client(app)
    await problem(await one.get("/readyz"), 503, "not-ready")
    assert (await one.get("/startupz")).status == 200
    await sidecar.Volume(shared).publish({"at.txt": "noon"})
    async with asyncio.timeout(10):
        while (await one.get("/readyz")).status != 200:
            await asyncio.sleep(0.01)


async def test_nothing_yet_is_the_exception_of_aiohttp(shared: Path) -> None:
    """So `except web.HTTPServiceUnavailable` works for whoever wants to do otherwise."""
    async with sidecar.watch(shared) as watch:
        with pytest.raises(web.HTTPServiceUnavailable):
            _ = Latest(watch).snapshot


async def test_the_probes_of_the_application_know_the_content(
    client: MakeClient, shared: Path
) -> None:
    """`health_routes` asks what `follow` has added."""
    await sidecar.Volume(shared).publish({"at.txt": "noon"})
    one = await client(program(shared))
    ready = await (await one.get("/readyz")).json()
    assert ready["checks"] == {f"content of {shared}": "ok"}


async def test_all_who_follow_a_path_share_one_watch(client: MakeClient, shared: Path) -> None:
    """Each watch costs an inotify instance, of which there are 128."""
    app = program(shared)
    app.cleanup_ctx.append(follow(shared, key=OTHER))
    await client(app)
    assert app[LATEST].watch is app[OTHER].watch


OTHER: web.AppKey[Latest[None]] = web.AppKey("other", Latest)
COUNT: web.AppKey[Latest[int]] = web.AppKey("count", Latest)


async def test_a_content_comes_as_what_the_schema_makes_of_it(
    client: MakeClient, shared: Path
) -> None:
    """Typed, under a key of its own; a content that the schema refuses never gets there."""

    def count(snapshot: Snapshot[Any]) -> int:
        return int(snapshot.text())

    async def show(request: web.Request) -> web.Response:
        return web.json_response(request.app[COUNT].snapshot.value + 1)

    path = shared / "count"
    await sidecar.publish_file(path, "41")
    app = web.Application()
    app.cleanup_ctx.append(follow(path, key=COUNT, schema=count))
    app.add_routes([web.get("/", show)])
    one = await client(app)
    assert await (await one.get("/")).json() == 42
    await sidecar.publish_file(path, "many")
    async with asyncio.timeout(10):
        while app[COUNT].stale is None:
            await asyncio.sleep(0.01)
    assert await (await one.get("/")).json() == 42


async def test_a_volume_that_hangs_does_not_hold_up_the_start(
    client: MakeClient, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look is waited for, but not for ever: probes must be answered."""
    from sidecar.http.apps import follow as following

    async def never(_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(sidecar.Watch, "looked", never)
    monkeypatch.setattr(following, "FIRST_SCAN_TIMEOUT", 0.05)
    one = await client(program(shared))
    assert (await one.get("/livez")).status == 200


async def test_a_site_of_files(client: MakeClient, shared: Path) -> None:
    """A list, and each file with its type; names that lead elsewhere are not there."""
    await sidecar.Volume(shared).publish({"index.html": "<h1>Hi</h1>", "css/main.css": "h1 {}"})
    one = await client(program(shared))
    for path in ("/site", "/site/"):
        listed = await (await one.get(path, headers={"Accept": "application/json"})).json()
        assert [entry["name"] for entry in listed] == ["css/main.css", "index.html"]
    page = await one.get("/site/index.html")
    assert (await page.text(), page.content_type) == ("<h1>Hi</h1>", "text/html")
    assert (await one.get("/site/css/main.css")).content_type == "text/css"
    await problem(await one.get("/site/nothing"), 404, "no-such-file")
    await problem(await one.get("/site/..data/index.html"), 404, "no-such-file")


async def test_a_site_runs_scripts_only_where_its_files_are_trusted(
    client: MakeClient, shared: Path
) -> None:
    """Whoever can write to the volume could put them there."""
    await sidecar.Volume(shared).publish({"index.html": "<script></script>"})
    app = web.Application()
    app.add_subapp("/any/", sidecar.files_app(shared))
    app.add_subapp("/ours/", sidecar.files_app(shared, trusted=True))
    one = await client(app)
    strange, ours = await one.get("/any/index.html"), await one.get("/ours/index.html")
    assert strange.headers["Content-Security-Policy"] == "sandbox"
    assert "Content-Security-Policy" not in ours.headers
    assert ours.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_site_of_a_mounted_configmap(client: MakeClient, shared: Path) -> None:
    """What kubelet lays out is served as what publish lays out: they are the same."""
    generation = shared / "..2026_01_01"
    generation.mkdir()
    (generation / "key").write_text("value")
    (shared / "..data").symlink_to(generation.name)
    (shared / "key").symlink_to("..data/key")
    past = time.time() - 60
    os.utime(generation / "key", (past, past))
    app = web.Application()
    app.add_subapp("/site/", sidecar.files_app(shared))
    assert await (await (await client(app)).get("/site/key")).text() == "value"
