"""What each probe says in each state: the table of docs/http.md, cell by cell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import sidecar
from sidecar import _errors
from sidecar.http.apps import follow, write_health
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import WRITER, writer_app
from sidecar.process import lifecycle
from support.httpkit import Client, MakeClient, Serve, place, talk

PAGE = Path(__file__).parents[3] / "docs" / "http.md"
PROBES = ("/startupz", "/livez", "/readyz")
MakeState = Callable[[], Awaitable[tuple[Client, str]]]
"""Brings an application into a state; returns a client of it, and what to ask for beside the probes."""


def table() -> dict[str, list[str]]:
    """The rows of the page by their states: three probes, and the answer."""
    rows = re.findall(
        r"^\| ((?:reader|writer|either): .+?) \|(.+)\|$", PAGE.read_text(), re.MULTILINE
    )
    return {state: re.findall(r"`(\d{3})`", cells) for state, cells in rows}


class States:
    """Each method is a row of the table."""

    def __init__(self, client: MakeClient, config: Path, patch: pytest.MonkeyPatch) -> None:
        self._client = client
        self._config = config
        self._patch = patch

    async def first_look(self) -> tuple[Client, str]:
        async def never(_: object) -> None:
            await asyncio.get_running_loop().create_future()

        self._patch.setattr(sidecar.Watch, "looked", never)
        self._patch.setattr(sidecar.Watch, "has_looked", False)
        self._patch.setattr(follow, "FIRST_SCAN_TIMEOUT", 0.01)
        return await self._client(reader_app(self._config)), "/"

    async def no_directory(self) -> tuple[Client, str]:
        return await self._client(reader_app(self._config.parent / "later" / "config")), "/"

    async def content(self) -> tuple[Client, str]:
        place(self._config, "123")
        return await self._client(reader_app(self._config)), "/"

    async def stale(self) -> tuple[Client, str]:
        one, _ = await self.content()
        self._config.unlink()
        async with asyncio.timeout(10):
            while "Sidecar-Stale" not in (await one.get("/")).headers:
                await asyncio.sleep(0.01)
        return one, "/"

    async def dead_watch(self) -> tuple[Client, str]:
        found = await self.content()
        self._patch.setattr(sidecar.Watch, "failure", "the watch of it fails: planted")
        return found

    async def written(self) -> tuple[Client, str]:
        return await self._client(writer_app(self._config)), "/?content=1"

    async def _refusing(self, error: Exception) -> tuple[Client, str]:
        async def fail(*_: object, **__: object) -> None:
            raise error

        one, path = await self.written()
        self._patch.setattr(one.app[WRITER].volume, "put", fail)
        await one.get(path)
        return one, path

    async def full(self) -> tuple[Client, str]:
        return await self._refusing(_errors.VolumeFull(28, "cannot publish it: no room"))

    async def read_only(self) -> tuple[Client, str]:
        return await self._refusing(_errors.VolumeUnavailable(30, "cannot publish it: read-only"))

    async def hanging(self) -> tuple[Client, str]:
        self._patch.setattr(write_health, "STALL_TIMEOUT", 0.0)
        one, _ = await self.written()
        one.app[WRITER].write_health.begin()
        one.app[WRITER].write_health.last_progress = 0.0
        return one, "/files/config"

    async def draining(self) -> tuple[Client, str]:
        found = await self.content()
        self._patch.setattr(lifecycle, "draining", lambda: True)
        return found


ROWS = {
    "reader: first scan not complete": States.first_look,
    "reader: nothing published, or no directory yet": States.no_directory,
    "reader: content available": States.content,
    "reader: content deleted, unreadable or rejected": States.stale,
    "reader: watch dead, or scan hangs": States.dead_watch,
    "writer: volume writable": States.written,
    "writer: volume full": States.full,
    "writer: volume read-only or failing": States.read_only,
    "writer: a write has been hanging for a minute": States.hanging,
    "either: draining": States.draining,
}


@pytest.mark.parametrize("row", ROWS)
async def test_a_probe_says_what_the_table_has(
    client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """State, three probes, and the answer: each cell as docs/http.md has it."""
    one, path = await ROWS[row](States(client, tmp_path / "config", monkeypatch))
    found = [str((await one.get(wanted)).status) for wanted in (*PROBES, path)]
    assert found == table()[row]


def test_each_row_of_the_table_is_tested() -> None:
    """A state that is added to the page needs its test."""
    assert table().keys() == ROWS.keys()


async def test_nothing_is_answered_before_the_volume_of_a_writer_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Serve, unused_tcp_port: int
) -> None:
    """The page says so below its table: a disk that hangs at the start is for the startup probe."""
    preparing, go_on = asyncio.Event(), asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        preparing.set()
        await go_on.wait()

    monkeypatch.setattr(sidecar.Volume, "prepare", hang)
    starting = asyncio.ensure_future(served(writer_app(tmp_path / "config"), port=unused_tcp_port))
    await preparing.wait()
    with pytest.raises(ConnectionRefusedError):
        await talk(unused_tcp_port, b"GET /startupz HTTP/1.1\r\nHost: x\r\n\r\n")
    go_on.set()
    await starting


@pytest.mark.parametrize("make", [reader_app, writer_app])
async def test_who_shows_no_token_learns_nothing_of_the_content(
    client: MakeClient, tmp_path: Path, make: Callable[..., web.Application]
) -> None:
    """No entity tag: half a SHA-256 is enough to confirm a guess of a short secret. With the token, details."""
    config, token = tmp_path / "config", tmp_path / "token"
    place(config, "pin=4711")
    token.write_text("secret\n")
    one = await client(make(config, token_file=token))
    for path in PROBES:
        answer = await one.get(path)
        said: dict[str, Any] = await answer.json()
        assert (answer.status, set(said)) == (200, {"status", "checks"})
        assert set(said["checks"].values()) <= {"ok"}
        shown = await one.get(path, headers={"Authorization": "Bearer secret"})
        assert (await shown.json())["details"]
        assert "ETag" not in answer.headers
