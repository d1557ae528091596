"""Who published a content, when and as what, over HTTP: taken from the request, served with the content (issue 15, point 4)."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from aiohttp import ClientSession

import sidecar
from sidecar.fs import xattrs
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import WRITER, writer_app
from sidecar.volume.content.snapshot import version_of
from support.httpkit import Client, MakeClient, Serve

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
TOKEN = {"Authorization": "Bearer secret"}
PUBLISHED = ("Sidecar-Published-At", "Sidecar-Published-By", "Sidecar-Request-Id")
#: RFC 3339 section 5.6, in UTC.
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "config"


@pytest.fixture(autouse=True)
def _outside_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POD_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


Both = Callable[[], Awaitable[tuple[Client, Client]]]


@pytest.fixture
def both(client: MakeClient, config: Path, tmp_path: Path) -> Both:
    """A writer that asks for the token of `deploy-bot`, and a reader that asks for none."""
    token = tmp_path / "tokens"
    token.write_text("deploy-bot: secret\n")

    async def make() -> tuple[Client, Client]:
        return await client(writer_app(config, token_file=token)), await client(reader_app(config))

    return make


async def newest(reader: Client, content: bytes) -> None:
    etag = f'"{version_of(content)}"'
    while (await reader.head("/")).headers["ETag"] != etag:
        await reader.get("/", headers={"If-None-Match": "x", "Prefer": "wait=1"})


@pytest.mark.parametrize("attributes", [True, False])
async def test_a_content_is_served_with_who_published_it(
    both: Both, monkeypatch: pytest.MonkeyPatch, attributes: bool
) -> None:
    """On every route of the content, for HEAD and 304, too; with the type it was sent with."""
    if not attributes:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        monkeypatch.setattr(os, "setxattr", refuse)
    writer, reader = await both()
    began = datetime.now(UTC)
    sent = {"Content-Type": "text/css; charset=utf-8", "X-Request-ID": "r-1", "traceparent": TRACE}
    answer = await writer.put("/files/config", data=b"a {}", headers=TOKEN | sent)
    assert (answer.status, answer.headers["Sidecar-Request-Id"]) == (204, "r-1")
    await newest(reader, b"a {}")
    etag = {"If-None-Match": answer.headers["ETag"]}
    for response in (
        await reader.get("/"),
        await reader.head("/raw"),
        await reader.get("/raw", headers=etag),
        await reader.get("/files/config"),
        await writer.get("/files/config", headers=TOKEN),
    ):
        at, by, request_id = (response.headers[name] for name in PUBLISHED)
        assert (by, request_id) == ("deploy-bot", "r-1")
        assert TIME.fullmatch(at)
        assert began <= datetime.fromisoformat(at) <= datetime.now(UTC)
        assert "traceparent" not in response.headers
    for path in ("/raw", "/files/config"):
        response = await reader.get(path)
        assert response.headers["Content-Type"] == "text/css; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox"
    (version, _) = await (await writer.get("/versions", headers=TOKEN)).json()
    assert {name: version[name] for name in ("published_by", "content_type", "request_id")} == {
        "published_by": "deploy-bot",
        "content_type": "text/css; charset=utf-8",
        "request_id": "r-1",
    }
    assert version["traceparent"] == TRACE
    (shown, _) = await (await reader.get("/ui/versions?name=config")).json()
    assert shown == version


async def test_what_nobody_said_is_not_there(client: MakeClient, config: Path) -> None:
    """A ConfigMap, a naive program: no header, no error; the type is guessed."""
    config.parent.mkdir()
    config.write_text("1")
    os.utime(config, (1e9, 1e9))
    response = await (await client(reader_app(config))).get("/raw")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert not [name for name in response.headers if name.startswith("Sidecar-")]
    answer = await (await client(writer_app(config))).get("/versions")
    (version,) = await answer.json()
    assert {version[name] for name in ("published_by", "content_type", "request_id")} == {None}


@pytest.mark.parametrize(
    "sent",
    [
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "multipart/form-data; boundary=x",
        "Multipart/X-Mixed-Replace; boundary=x",
        "message/http",
        "text",
        "",
        "text/html; charset",
        "text/html, text/plain",
    ],
)
async def test_a_type_that_says_nothing_is_not_kept(both: Both, sent: str) -> None:
    """`curl --data-binary` sends that of a form, libraries that of any bytes; parts of a multipart body have headers of their own."""
    writer, reader = await both()
    await writer.put("/files/config", data=b"1", headers=TOKEN | {"Content-Type": sent})
    await newest(reader, b"1")
    assert (await reader.get("/raw")).headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "value",
    [
        {"content_type": "text/html\r\nSet-Cookie: a=b"},
        {"content_type": "multipart/x-mixed-replace; boundary=x"},
        {"published_by": "a\r\nSet-Cookie: a=b"},
        {"published_by": "é\u2028" + "x"},
        {"request_id": "a\r\nSet-Cookie: a=b"},
        {"request_id": "x" * 200},
        {"published_at": "2026-01-01T00:00:00+00:00\r\nSet-Cookie: a=b"},
    ],
)
async def test_planted_metadata_makes_no_header(
    both: Both, config: Path, value: dict[str, str]
) -> None:
    """Whoever can write to the volume can write it; neither a header nor a type that browsers take apart comes of it."""
    writer, reader = await both()
    await writer.put("/files/config", data=b"1", headers=TOKEN)
    await newest(reader, b"1")
    os.setxattr(config, xattrs.NAME, orjson.dumps({"version": version_of(b"1"), **value}))
    await writer.put("/files/config", data=b"2", headers=TOKEN)
    kept = config.parent / "..versions" / "file-config"
    (old,) = (path for path in kept.iterdir() if path.read_bytes() == b"1")
    os.link(old, config.parent / "planted")
    for response in (
        await writer.get("/files/planted", headers=TOKEN),
        await reader.get("/files/planted"),
        await writer.get("/versions", headers=TOKEN),
    ):
        assert response.status == 200
        assert "Set-Cookie" not in response.headers
        assert "multipart" not in response.headers["Content-Type"]
        for name in set(PUBLISHED) & response.headers.keys():
            assert response.headers[name].isascii()
            assert response.headers[name].isprintable()


@pytest.mark.parametrize("sent", ["a b", "x" * 129, "é", ""])
async def test_a_request_without_a_usable_id_gets_one(both: Both, sent: str) -> None:
    """It is the same in the answer and with the content, and no other request has it."""
    writer, reader = await both()
    answer = await writer.put("/files/config", data=b"1", headers=TOKEN | {"X-Request-ID": sent})
    made = answer.headers["Sidecar-Request-Id"]
    assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", made)
    await newest(reader, b"1")
    assert (await reader.get("/")).headers["Sidecar-Request-Id"] == made
    again = await writer.delete("/files/config", headers=TOKEN)
    assert again.headers["Sidecar-Request-Id"] != made


async def test_a_rollback_is_that_of_who_rolled_back(both: Both) -> None:
    """And the type is that of the old content."""
    writer, reader = await both()
    first = await writer.put(
        "/files/config", data=b"a {}", headers=TOKEN | {"Content-Type": "text/css"}
    )
    await writer.put("/files/config", data=b"2", headers=TOKEN | {"Content-Type": "text/plain"})
    answer = await writer.post(
        "/rollback",
        json={"to": first.headers["ETag"]},
        headers=TOKEN | {"X-Request-ID": "back"},
    )
    assert (answer.status, answer.headers["Sidecar-Request-Id"]) == (200, "back")
    await newest(reader, b"a {}")
    response = await reader.get("/raw")
    assert response.headers["Content-Type"] == "text/css"
    assert response.headers["Sidecar-Request-Id"] == "back"


async def test_another_type_for_the_same_bytes_is_seen(both: Both) -> None:
    """The tag is the same, and answers that were kept are not served any longer."""
    writer, reader = await both()
    await writer.put("/files/config", data=b"1", headers=TOKEN | {"Content-Type": "text/css"})
    await newest(reader, b"1")
    for _ in range(3):
        assert (await reader.get("/raw")).headers["Content-Type"] == "text/css"
    answer = await writer.put(
        "/files/config", data=b"1", headers=TOKEN | {"Content-Type": "text/markdown"}
    )
    assert answer.status == 204
    async with asyncio.timeout(30):
        while (await reader.get("/raw")).headers["Content-Type"] != "text/markdown":
            await asyncio.sleep(0.01)


async def test_files_of_a_set_have_the_type_they_came_with(
    client: MakeClient, tmp_path: Path
) -> None:
    """And all of them who published the set."""
    volume = sidecar.Volume(tmp_path / "set")
    await volume.publish({"a": "1", "b": "1"}, metadata=sidecar.Metadata(published_by="alice"))
    writer = await client(writer_app(f"{tmp_path}/set/"))
    answer = await writer.put(
        "/files/a", data=b"2", headers={"Content-Type": "text/css", "X-Request-ID": "r"}
    )
    assert answer.status == 204
    reader = await client(reader_app(f"{tmp_path}/set/"))
    for app in (reader, writer):
        for name, kind in (("a", "text/css"), ("b", "text/plain; charset=utf-8")):
            response = await app.get(f"/files/{name}")
            assert response.headers["Content-Type"] == kind
            assert response.headers["Sidecar-Request-Id"] == "r"
    assert (await reader.get("/")).headers["Sidecar-Request-Id"] == "r"


async def test_the_fast_path_takes_and_serves_it(config: Path, served: Serve) -> None:
    """Writes by a template have the ID and trace of their own request; kept answers have the headers."""
    app = writer_app(config, durability="none")
    writer = await served(app)
    volume = app[WRITER].volume
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", writer.port)
    # The first two make the template; a proxy sends another ID with each.
    for number in range(6):
        head = f"X-Request-ID: r-{number}\r\ntraceparent: {TRACE}\r\n" if number % 2 else ""
        request = f"GET /?content={number} HTTP/1.1\r\nHost: a\r\n{head}Accept: */*\r\n\r\n"
        outgoing.write(request.encode())
        await incoming.readuntil(b'"ok"')
        found = (await volume.read("config")).metadata
        assert found is not None
        if number % 2:
            assert (found.request_id, found.traceparent) == (f"r-{number}", TRACE)
        else:
            assert found.request_id is not None
            assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", found.request_id)
            assert found.traceparent is None
    outgoing.close()
    reader = await served(reader_app(config))
    async with ClientSession() as session:
        seen = set()
        for _ in range(4):
            async with session.get(f"{reader.url}/raw") as response:
                seen.add(response.headers.get("Sidecar-Request-Id"))
        assert seen == {"r-5"}
