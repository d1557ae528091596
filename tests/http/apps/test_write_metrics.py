"""Every attempt to change the volume is counted once, with its true outcome, and is one line in the log (issue 10, point 12)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientError, ClientSession, web

from sidecar.http.apps.writer import writer_app
from sidecar.process import metrics
from sidecar.volume import change_log
from sidecar.volume.content.snapshot import version_of
from sidecar.volume.validation.gate import Gate
from support import Eventually
from support.httpkit import Client, MakeClient, Serve, tag


def counts() -> dict[str, float]:
    return {
        result: metrics.PUBLISH_TOTAL.labels(result)._value.get()
        for result in metrics.PUBLISH_RESULTS
    }


def new(before: dict[str, float]) -> dict[str, float]:
    return {key: value - before[key] for key, value in counts().items() if value != before[key]}


@pytest.fixture(autouse=True)
def _nothing_said_before() -> None:
    change_log._recent.clear()


@pytest_asyncio.fixture
async def one(client: MakeClient, tmp_path: Path) -> Client:
    app = writer_app(tmp_path / "config", gate=Gate(format="json"), max_size=1000)
    return await client(app)


async def endless() -> AsyncIterator[bytes]:
    yield b"1" * 2000


ATTEMPTS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "published": ("PUT", "/files/a", {"data": b"1"}, 201),
    "a GET": ("GET", "/?content=1", {}, 200),
    "unchanged": ("PUT", "/files/there", {"data": b"0"}, 204),
    "deleted": ("DELETE", "/files/there", {}, 204),
    "refused by the gate": ("PUT", "/files/a", {"data": b"no json"}, 422),
    "refused for its length": ("PUT", "/files/a", {"data": b"1" * 2000}, 413),
    "refused on the way": ("PUT", "/files/a", {"data": "endless"}, 413),
    "refused for its name": ("PUT", "/files/..a", {"data": b"1"}, 400),
    "conflict": ("PUT", "/files/a", {"data": b"1", "headers": {"If-Match": '"x"'}}, 412),
    "conflict of a delete": ("DELETE", "/files/there", {"headers": {"If-Match": '"x"'}}, 412),
    "missing": ("DELETE", "/files/nowhere", {}, 404),
    "missing version": ("POST", "/rollback", {"json": {"to": tag("?")}}, 404),
    "a trial": ("PUT", "/files/a?dry_run=1", {"data": b"no json"}, 422),
}
RESULTS = {"a GET": "published", "a trial": None}


@pytest.mark.parametrize("name", ATTEMPTS)
async def test_each_attempt_counts_once_as_what_it_was(one: Client, name: str) -> None:
    """An unknown version is no refusal of a content, 413 is one, and a trial is no attempt."""
    method, path, options, status = ATTEMPTS[name]
    await one.put("/files/there", data=b"0")
    before = counts()
    if options.get("data") == "endless":
        options = {"data": endless()}
    answer = await one.request(method, path, **options)
    assert answer.status == status, await answer.text()
    result = RESULTS.get(name, name.split(maxsplit=1)[0])
    assert new(before) == ({result: 1} if result else {})


async def test_an_upload_whose_client_goes_away_counts_as_cancelled(
    one: Client, eventually: Eventually
) -> None:
    """It was an attempt, and nobody has refused it."""
    before = counts()

    async def half() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.sleep(0.05)
        raise ConnectionError

    with pytest.raises((ClientError, ConnectionError)):
        await one.put("/files/a", data=half())
    await eventually(lambda: new(before) == {"cancelled": 1})


async def test_each_change_is_one_line_that_says_what_and_for_whom(
    one: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Size, version, client, request; of a refusal the reason, as the alert promises."""
    with caplog.at_level(logging.INFO):
        await one.put("/files/a", data=b"12", headers={"X-Request-ID": "r-1"})
        await one.put("/files/a", data=b"no json\n")
        await one.post("/rollback", json={"to": tag("12"), "name": "a"})
        await one.delete("/files/a?purge=1", headers={"X-Request-ID": "r-2"})
    lines = [r.getMessage() for r in caplog.records if r.name == change_log.__name__]
    where = tmp_path / "a"
    done = f"published {where}: 2 bytes, version {version_of(b'12')}"
    assert lines[0] == f"{done}, for 127.0.0.1, request r-1"
    assert lines[1].startswith(f"refused {where}: cannot publish {where}: not valid JSON")
    assert lines[-1] == f"deleted {where}: with its history, for 127.0.0.1, request r-2"
    assert all("\n" not in line for line in lines)


async def test_under_load_it_is_one_line_a_second(
    client: MakeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """The rest is summed up; those by the fast path are counted in."""
    one = await client(writer_app(tmp_path / "config", durability="none"))
    with caplog.at_level(logging.INFO):
        for number in range(20):
            await one.get(f"/?content={number}")

        def said() -> list[str]:
            return [r.getMessage() for r in caplog.records if r.name == change_log.__name__]

        await eventually(lambda: sum("more within" in line for line in said()) > 0)
    total = sum(int(line.split(": ")[1].split()[0]) if "more" in line else 1 for line in said())
    assert len(said()) <= 10
    assert total == 20


async def test_the_access_log_has_one_line_for_each_request(
    served: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also for what would be answered from memory; neither contents nor tokens are in it."""
    app: web.Application = writer_app(tmp_path / "config")
    one = await served(app, access_log=True)
    with caplog.at_level(logging.INFO, logger="sidecar.http.server.access_log"):
        async with ClientSession() as session:
            for number in range(4):
                async with session.get(f"{one.url}/?content=secret{number}") as answer:
                    assert answer.status == 200
            async with session.get(f"{one.url}/nope%0a") as answer:
                assert answer.status == 404
    lines = [r.getMessage() for r in caplog.records if r.name == "sidecar.http.server.access_log"]
    assert [line.split()[1:4] for line in lines] == [["GET", "/", "200"]] * 4 + [
        ["GET", "/nope?", "404"]
    ]
    assert "secret" not in str(lines)
